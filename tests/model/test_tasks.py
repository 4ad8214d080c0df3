"""The table of tasks and their prompts: against transformers' processor and Microsoft's results."""

from typing import Any

import pytest

from florence2ner.errors import UserError
from florence2ner.model.tasks import TASKS, Task, doubt_about, find_signs, find_task, prompt_of
from tests.model.support import needs_oracle

REGION = "<loc_52><loc_333><loc_932><loc_774>"


def test_the_table_is_the_processors(processor: Any) -> None:
    kinds = {
        "text": "pure_text",
        "boxes": "description_with_bboxes",
        "phrases": "phrase_grounding",
        "proposals": "bboxes",
        "quads": "ocr",
        "boxes_or_polygons": "description_with_bboxes_or_polygons",
    }
    answers = {token: kinds.get(task.answer, task.answer) for token, task in TASKS.items()}
    assert answers == processor.tasks_answer_post_processing_type
    assert {token for token, task in TASKS.items() if task.takes_input} == processor.task_prompts_with_input.keys()
    for token, task in TASKS.items():
        assert (task.input == "region") == token.startswith("<REGION_TO_"), token
        assert find_task(f" {token} ") is task
        assert token == f"<{task.name.upper()}>"


@needs_oracle
def test_prompts_become_the_originals(facts: dict[str, Any], processor: Any) -> None:
    for prompt, expected in facts["prompt_expansion"].items():
        token = prompt.removesuffix("a dog")
        text = prompt.removeprefix(token)
        if TASKS[token].input == "region":  # the original takes anything
            assert prompt_of(TASKS[token], REGION) == token + REGION
        else:
            assert prompt_of(find_task(token), text) == prompt
        assert processor._construct_prompts(prompt) == [expected["expanded"]]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("<GENERATE_TAGS>", "generate_tags"),
        ("<MIXED_CAPTION>", "mixed_caption"),
        ("Describe this image.", "describe_this_image"),
        ("../../etc/passwd: who?", "etc_passwd_who"),
        ("画像を説明して", "画像を説明して"),
        ("<caption>", "caption_fba9552e"),  # not Microsoft's <CAPTION>
        ("?", "prompt_8a8de823"),
        ("Write a long detailed description for this image", "write_a_long_detailed_description_for_th_35cb83fd"),
    ],
)
def test_other_prompts_ask_for_text(prompt: str, name: str) -> None:
    assert find_task(prompt) == Task(prompt, name, "text", None)
    assert prompt_of(find_task(prompt)) == prompt


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<CAPTION_TO_PHRASE_GROUNDING>a dog", "give <CAPTION_TO_PHRASE_GROUNDING> alone, and --text 'a dog'"),
        ("<CAPTION> please", "give <CAPTION> alone"),
        ("What is <image>?", "the task prompt holds <image>, which the model doesn't take for text"),
    ],
)
def test_a_prompt_around_a_task_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_task(prompt)


@pytest.mark.parametrize(
    ("token", "text", "message"),
    [
        ("<CAPTION>", "a dog", "<CAPTION> takes no text: leave out --text"),
        ("<OPEN_VOCABULARY_DETECTION>", None, 'give it with --text, such as --text "a red car"'),
        ("<OPEN_VOCABULARY_DETECTION>", " \n", "give it with --text"),
        ("<OPEN_VOCABULARY_DETECTION>", "<OD> dog", "--text holds the task <OD>"),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>",
            "a <image> of a cat",
            "--text holds <image>, which the model doesn't take for",
        ),
        ("<CAPTION_TO_PHRASE_GROUNDING>", "a cat</s>", "--text holds </s>"),
        ("<REGION_TO_OCR>", None, 'such as --text "<loc_100><loc_250><loc_500><loc_750>"'),
        ("<REGION_TO_OCR>", "10,20,30,40", "must be <loc_x1><loc_y1><loc_x2><loc_y2>"),
        ("<REGION_TO_OCR>", "<loc_1><loc_2><loc_3>", "each from 0 to 999"),
        ("<REGION_TO_OCR>", REGION + "<loc_1>", "must be"),
        ("<REGION_TO_OCR>", "<loc_1><loc_2><loc_3><loc_1000>", "must be"),
        ("<REGION_TO_OCR>", "<loc_1>\n<loc_2><loc_3><loc_4>", "must be"),
    ],
)
def test_text_that_does_not_fit_the_task_is_refused(token: str, text: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        prompt_of(TASKS[token], text)
    assert "\n" not in str(raised.value)


def test_a_prompt_that_is_no_task_is_doubted_with_the_task_that_may_be_meant() -> None:
    assert doubt_about(" <CAPTION> ") is None
    said = "is not one of Florence-2's own tasks."
    assert doubt_about("<GENERATE_TAGS>") == f"the task prompt <GENERATE_TAGS> {said}"
    for prompt in ("<CAPTON>", "<caption>", "caption"):
        assert doubt_about(prompt) == f"the task prompt {prompt} {said} Did you mean <CAPTION>?"
    with pytest.raises(UserError, match="is more than its task"):
        doubt_about("<CAPTION> of a dog")


def test_signs_in_a_caption_are_those_that_stand_for_no_text_under_its_task() -> None:
    caption = "</s> a <loc_12> dog <od> <p>"
    assert sorted(find_signs(caption, TASKS["<CAPTION>"])) == ["</s>", "<loc_12>", "<od>"]
    for prompt in ("<OD>", "<MY_TASK>"):  # an answer about places, and perhaps one
        assert find_signs(caption, find_task(prompt)) == ["</s>"]
    assert find_signs("<loc_1000> and <caption>", TASKS["<CAPTION>"]) == []
