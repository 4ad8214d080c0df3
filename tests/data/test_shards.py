"""Tar shards: what they are called, what is read from them, and what is wrong with them and told."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from florence2ner.config.options import ReadingOptions
from florence2ner.data.pictures import load_image
from florence2ner.data.samples import Sample
from florence2ner.data.shards import Faults, expand, is_shards, read_shard, read_shards
from florence2ner.errors import UserError
from tests.data.support import captioned, jpeg, put, write_shard


def read(shard: Path | str, *, captions: bool = True, **options: object) -> tuple[list[Sample], list[str]]:
    faults = Faults()
    samples = [*read_shard(str(shard), ReadingOptions.model_validate(options), faults, captions=captions)]
    return samples, faults.report()


def texts(samples: list[Sample]) -> list[tuple[str, tuple[str, ...]]]:
    return [(sample.image.path.name, sample.captions) for sample in samples]


def test_what_means_shards(tmp_path: Path) -> None:
    only, mixed = tmp_path / "only", tmp_path / "mixed"
    for folder in (only, mixed):
        write_shard(folder / "b.tar", captioned("b"))
        write_shard(folder / "a.tar", captioned("a"))
    put(mixed / "photo.png", "images as files, and a backup")
    for text in ("x/{00..99}.tar", "a.tar", "b.TAR.gz", "https://host/{0..9}.tar", "pipe:cat a.tar", str(only)):
        assert is_shards(text)
    assert not any(map(is_shards, (str(mixed), str(tmp_path), "no such folder", "photos")))
    assert expand(str(only)) == [f"{only}/a.tar", f"{only}/b.tar"]
    assert expand(f"{only}/{{b,a}}.tar") == [f"{only}/b.tar", f"{only}/a.tar"]


def test_braces_stand_for_several_shards(tmp_path: Path) -> None:
    assert expand("https://h/{09..11}.tar") == ["https://h/09.tar", "https://h/10.tar", "https://h/11.tar"]
    assert expand("pipe:aws s3 cp s3://x/{a,b}{1..0}.tar - | awk '{print}' ${HOME}") == [
        f"pipe:aws s3 cp s3://x/{name}.tar - | awk '{{print}}' ${{HOME}}" for name in ("a1", "a0", "b1", "b0")
    ]
    write_shard(tmp_path / "1.tar", captioned("a"))
    with pytest.raises(UserError) as error:
        expand(f"{tmp_path}/{{0..2}}.tar")
    assert str(error.value) == (
        f"2 of 3 shards are missing: {tmp_path}/0.tar, {tmp_path}/2.tar; mend {tmp_path}/{{0..2}}.tar"
    )


def test_members_of_one_key_make_a_sample(tmp_path: Path) -> None:
    members = {
        "in/a.b.txt": b"not of an image: the extension is all after the first dot",
        "in/c.JPG": jpeg("c"),
        "in/c.txt": b"\xef\xbb\xbftwo \r\nlines\n",
        "in/c.json": b'{"caption": "unused", "other": "of the column", "task": "<DETAILED_CAPTION>"}',
        "d.png": jpeg("d"),
        "d.json": json.dumps({"caption": ["one", " two ", "one"]}).encode(),
    }
    shard = write_shard(tmp_path / "0.tar", members)
    samples, told = read(shard)
    assert texts(samples) == [("c.jpg", ("two \nlines",)), ("d.png", ("one",)), ("d.png", ("two",))]
    assert told == [f"1 keys have no image and are left out: {shard}/in/a"]
    image = samples[0].image
    assert (image.name, image.path, str(image)) == (f"{shard}/in/c.jpg", shard / "in" / "c.jpg", f"{shard}/in/c.jpg")
    assert image.size() == len(jpeg("c"))
    assert image.stamp() != samples[1].image.stamp()
    assert load_image(image).size == (8, 6)
    assert texts(read(shard, caption_lines="random")[0])[1] == ("d.png", ("one", "two"))
    (sample,), told = read(shard, caption_column="other", prompt_column="task")
    assert (sample.captions, sample.task_prompt) == (("of the column",), "<DETAILED_CAPTION>")
    assert told[1] == f"1 images have no caption and are left out: {shard}/d.png"
    bare, told = read(shard, captions=False)
    assert texts(bare) == [("c.jpg", ()), ("d.png", ())]


def test_what_is_no_sample_is_counted_and_named(tmp_path: Path) -> None:
    members = captioned("good")
    for key, text in (("latin", "café".encode("latin-1")), ("empty", b" \n")):
        members |= {f"{key}.jpg": jpeg(key), f"{key}.txt": text}
    for key, text in (
        ("torn", b'{"caption": '),
        ("list", b"[1]"),
        ("number", b'{"caption": 7}'),
        ("un", b'{"c": "a"}'),
    ):
        members |= {f"{key}.jpg": jpeg(key), f"{key}.json": text}
    members |= {f"../{name}": content for name, content in captioned("outside").items()}
    members |= {f"/{name}": content for name, content in captioned("absolute").items()}
    shard = write_shard(tmp_path / "0.tar", members)
    samples, told = read(shard)
    assert [sample.image.path.name for sample in samples] == ["good.jpg"]
    assert told == [
        f"1 keys have text that is not UTF-8 and are left out: {shard}/latin",
        f"2 images have no caption and are left out: {shard}/empty.jpg, {shard}/un.jpg",
        f"1 keys have a .json that is not JSON and are left out: {shard}/torn",
        f"1 keys have a .json that holds no object and are left out: {shard}/list",
        f"1 keys have a .json that has no text for a caption and are left out: {shard}/number",
        f"4 members are no regular files or have unsafe names and are left out: {shard}/../outside.jpg, "
        f"{shard}/../outside.txt, {shard}//absolute.jpg and 1 more",
    ]


def test_every_image_is_read_or_named(tmp_path: Path) -> None:
    """Without captions, what is beside an image can be as it likes."""
    members = {"a.jpg": jpeg("a"), "a.png": jpeg("b"), "a.json": b"torn", "a.txt": b"\xe9", "sub/a.JPG": jpeg("c")}
    shard = write_shard(tmp_path / "a.tar", members | {"sub/a.jpg": jpeg("d")})
    samples, told = read(shard, captions=False)
    assert texts(samples) == [("a.jpg", ()), ("a.jpg", ())]
    assert [sample.image.open().read() for sample in samples] == [jpeg("a"), jpeg("c")]
    assert told == [
        f"1 images share their key with another and are left out: {shard}/a.png",
        f"1 members have the name of another and are left out: {shard}/sub/a.jpg",
    ]


def test_links_and_devices_are_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("of another user")
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w") as archive:
        for name, kind in (("a.txt", tarfile.SYMTYPE), ("b.txt", tarfile.LNKTYPE), ("c.txt", tarfile.FIFOTYPE)):
            picture = tarfile.TarInfo(name.replace("txt", "jpg"))
            picture.size = len(jpeg(name))
            archive.addfile(picture, io.BytesIO(jpeg(name)))
            special = tarfile.TarInfo(name)
            special.type, special.linkname = kind, str(secret)
            archive.addfile(special)
    before = {*tmp_path.iterdir()}
    samples, told = read(shard)
    assert samples == []
    assert told[0].startswith("3 members are no regular files")
    assert {*tmp_path.iterdir()} == before  # nothing is unpacked


@pytest.mark.parametrize(("end", "whole"), [("header", 1), ("border", 1), ("content", 2)])
def test_what_comes_before_the_end_of_a_torn_shard_is_used(end: str, whole: int, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", captioned("a", "b", "c"))
    with tarfile.open(shard) as archive:
        last = archive.getmember("c.jpg")
    cut = {"header": last.offset + 100, "content": last.offset_data + 100, "border": last.offset}[end]
    shard.write_bytes(shard.read_bytes()[:cut])
    samples, (told,) = read(shard)
    # Without the next key, nobody knows whether the last one has all its members.
    assert [sample.caption for sample in samples] == ["a caption of a", "a caption of b"][:whole]
    assert told.startswith(f"1 shards can't be read to their end: {shard} (")
    assert told.endswith(f"; {whole} samples were read)")


def test_files_that_are_no_shards_are_told(tmp_path: Path) -> None:
    for name, content in (("empty.tar", b""), ("text.tar", b"a text" * 999), ("torn.tar.gz", b"\x1f\x8b\x08\x00" * 9)):
        (tmp_path / name).write_bytes(content)
        samples, (told,) = read(tmp_path / name)
        assert samples == []
        assert told.startswith(f"1 shards can't be read to their end: {tmp_path / name} (")
        assert "\n" not in told
    with pytest.raises(UserError, match=r"^no image with a caption in the shards; 1 shards can't be read"):
        read_shards([str(tmp_path / "empty.tar")], ReadingOptions(), Faults())


def test_what_a_command_writes_is_read(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", captioned(*map(str, range(300))))
    samples, told = read(f"pipe:cat {shard}")
    assert (len(samples), told) == (300, [])
    assert read(f"pipe:gzip -c {shard}")[0][299].caption == "a caption of 299"
    _, (told,) = read(f"pipe:echo starting >&2; head -c 5000 {shard}; echo no such bucket >&2; exit 3")
    assert "(no such bucket; " in told
    _, (told,) = read("pipe:exit 4")
    assert told.endswith("(exit code 4; 0 samples were read)")
    assert read(f"pipe:cat {shard}; exit 5")[1] != []


def test_a_command_that_is_not_read_to_its_end_is_stopped(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", captioned(*map(str, range(300))))
    faults = Faults()
    reading = read_shard(f"pipe:trap '' TERM; cat {shard}; sleep 600", ReadingOptions(), faults)
    assert next(reading).caption == "a caption of 0"
    reading.close()  # does not wait for the command
    assert faults.report() == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_what_a_url_leads_to_is_read(server: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", captioned("a", "b"))
    first, second = expand(f"{server}/{{0..1}}.tar")
    samples, told = read(first)
    assert [str(sample.image) for sample in samples] == [f"{server}/0.tar/a.jpg", f"{server}/0.tar/b.jpg"]
    assert told == []
    _, (told,) = read(second)
    assert told == (
        f"1 shards can't be read to their end: {server}/1.tar (HTTP Error 404: File not found; 0 samples were read)"
    )


def test_memory_does_not_grow_with_a_shard(tmp_path: Path) -> None:
    peaks: dict[int, list[int]] = {}
    for number in (2000, 50, 2000, 50, 2000):  # the lowest counts: Python makes room for its own strings now and then
        shard = write_shard(tmp_path / f"{number}.tar", captioned(*map(str, range(number))))
        tracemalloc.start()
        assert sum(1 for _ in read_shard(str(shard), ReadingOptions(), Faults())) == number
        peaks.setdefault(number, []).append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert min(peaks[2000]) < 1.5 * min(peaks[50])


def test_reading_into_memory_stops_at_a_limit(tmp_path: Path) -> None:
    shards = [str(write_shard(tmp_path / f"{n}.tar", captioned(f"{n}a", f"{n}b"))) for n in range(2)]
    (tmp_path / "1.tar").unlink()  # is never looked at
    samples = read_shards(shards, ReadingOptions(), Faults(), limit=2)
    assert [sample.caption for sample in samples] == ["a caption of 0a", "a caption of 0b"]
