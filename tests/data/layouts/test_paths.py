"""Paths that files of a dataset name lead where their text says, with or without `..` and links."""

from pathlib import Path

import pytest

from florence2ner.data.layouts.paths import find_image, is_part, resolve
from florence2ner.errors import UserError
from tests.data.support import put


@pytest.mark.parametrize(
    ("base", "name", "expected", "is_inside"),
    [
        ("", "a.png", "data/a.png", True),
        ("sub", "../a.png", "data/a.png", True),
        ("", "sub/../b/./a.png", "data/b/a.png", True),
        ("", "../data/a.png", "data/a.png", True),
        ("", "{top}/data/a.png", "data/a.png", True),
        ("", "../pool/a.png", "{top}/pool/a.png", False),
        ("sub", "../../a.png", "{top}/a.png", False),
        ("", "{top}/pool/a.png", "{top}/pool/a.png", False),
        ("", "../data-of-others/a.png", "{top}/data-of-others/a.png", False),
        ("", "link/a.png", "data/link/a.png", True),
        ("", "link/../../a.png", "{top}/a.png", False),
    ],
)
@pytest.mark.parametrize("root", ["data", "{top}/data", "."])
def test_a_path_leads_where_its_text_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, base: str, name: str, expected: str, is_inside: bool
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/")
    monkeypatch.chdir(tmp_path / "data" if root == "." else tmp_path)
    given = Path(root.format(top=tmp_path))
    path = Path(expected.format(top=tmp_path))
    if is_inside:
        path = given / path.relative_to("data")
    assert resolve(given, given / base, name.format(top=tmp_path)) == (path, is_inside)


@pytest.mark.parametrize("root", [Path("/d"), Path("d"), Path()])
def test_an_image_outside_is_of_the_folder_of_its_file(root: Path) -> None:
    train, image = root / "train", Path("/pool/a.png")
    assert is_part(root / "train" / "a.png", root, train, root / "t.csv")
    assert not is_part(root / "eval" / "a.png", root, train, root / "t.csv")
    assert is_part(image, root, root, root / "t.csv")
    assert is_part(image, root, train, train / "t.csv")
    assert not is_part(image, root, train, root / "eval" / "t.csv")


def test_an_image_is_looked_for_in_the_dataset_only(tmp_path: Path) -> None:
    root = tmp_path / "data"
    image, outside = put(root / "sub" / "a.png"), put(tmp_path / "secret.png")
    bases = (root / "sub", root)
    assert find_image(root, bases, "a.png", "row 3", allow_outside=False) == image
    assert find_image(root, bases, "sub/a.png", "row 3", allow_outside=False) == image
    assert find_image(root, bases, "b.png", "row 3", allow_outside=False) is None
    for name in ("../secret.png", str(outside)):
        with pytest.raises(UserError, match=r"row 3 names .*secret.png, which is outside of .* --allow-outside"):
            find_image(root, (root,), name, "row 3", allow_outside=False)
        assert find_image(root, (root,), name, "row 3", allow_outside=True) == outside
