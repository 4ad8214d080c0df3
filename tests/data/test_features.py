"""The feature cache itself: no stale or torn feature, names that tell all, and memory that is given back."""

import os
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from florence2ner.data.features import FeatureCache, fingerprint_of, memory_directory
from florence2ner.data.samples import ImageRef
from florence2ner.errors import UserError


def test_torn_and_stale_features_are_never_read(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(image)
    feature = torch.randn(3, 4).bfloat16()
    ref = ImageRef.at(image)
    cache = FeatureCache(tmp_path / "cache", "abc")
    cache.digests = cache.identify([ref, ImageRef.at(tmp_path / "gone.png")])
    assert cache.missing([ref]) == [ref]
    assert cache.store(ref.key, feature)
    assert torch.equal(cache.load(ref.key), feature)
    assert cache.missing([ref]) == []

    (file,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    for torn in (file.read_bytes()[:-9], bytes(file.stat().st_size), b""):
        file.write_bytes(torn)
        assert cache.load(ref.key) is None

    cache.store(ref.key, feature)
    Image.new("RGB", (8, 8), "blue").save(image)
    again = FeatureCache(tmp_path / "cache", "abc")
    again.digests = again.identify([ref])
    assert again.load(ref.key) is None, "the image has changed"
    assert FeatureCache(tmp_path / "cache", "other").load(ref.key) is None


def test_a_pipe_in_the_cache_is_no_feature_and_no_list_of_digests(tmp_path: Path) -> None:
    image, feature = tmp_path / "a.png", torch.randn(3, 4)
    Image.new("RGB", (8, 8), "red").save(image)
    ref = ImageRef.at(image)
    cache = FeatureCache(tmp_path / "cache", "abc")
    cache.digests = cache.identify([ref])
    cache.store(ref.key, feature)
    (file,) = [path for path in cache.folder.rglob("*") if path.is_file()]
    file.unlink()
    os.mkfifo(file)  # opening it would wait for somebody who writes
    assert cache.load(ref.key) is None
    assert cache.missing([ref]) == [ref]
    assert cache.store(ref.key, feature)
    assert torch.equal(cache.load(ref.key), feature)

    listing = tmp_path / "cache" / "digests.jsonl"
    listing.unlink()
    os.mkfifo(listing)
    with pytest.raises(UserError, match=r"can't write .*digests\.jsonl"):
        cache.identify([ref])


def test_the_fingerprint_changes_with_weights_and_facts() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    names = {
        fingerprint_of({"a": tensor}, 1),
        fingerprint_of({"a": tensor}, 2),
        fingerprint_of({"b": tensor}, 1),
        fingerprint_of({"a": tensor + 1e-6}, 1),
        fingerprint_of({"a": tensor.T}, 1),
        fingerprint_of({"a": tensor.bfloat16()}, 1),
    }
    assert len(names) == 6
    channels_last = torch.randn(2, 3, 4, 4)
    assert fingerprint_of({"a": channels_last}) == fingerprint_of(
        {"a": channels_last.contiguous(memory_format=torch.channels_last)}
    )


def test_memory_is_given_back_also_that_of_killed_runs() -> None:
    with memory_directory() as directory:
        assert str(os.getpid()) in directory.name
        abandoned = directory.with_name(directory.name.replace(str(os.getpid()), "999999999"))
        abandoned.mkdir()
        # Containers may share this folder, but process ids of one say nothing in another.
        elsewhere = Path(str(abandoned).replace(socket.gethostname(), "another-host"))
        elsewhere.mkdir()
    assert not directory.exists()
    with memory_directory():
        assert not abandoned.exists()
        assert elsewhere.exists()
    elsewhere.rmdir()
