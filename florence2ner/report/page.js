// Makes the page of its blocks.
const BLOCKS = {
  charts: chartsBlock,
  timeline: timelineBlock,
  scores: scoresBlock,
  differences: differencesBlock,
  gallery: galleryBlock,
  facts: factsBlock,
};
document.getElementById("main").append(...DATA.blocks.map((block) => BLOCKS[block.block](block)));
