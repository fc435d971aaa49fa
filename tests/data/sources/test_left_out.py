from img2prompt.data.sources.left_out import LeftOut, with_left_out
from img2prompt.data.sources.rows import Rejected, count_kinds


def test_files_are_counted_by_ending() -> None:
    left_out = LeftOut("mine", "pictures")
    for name in (
        "in/a.MD",
        "b.md",
        "LICENSE",
        "in/.DS_Store",
        "__MACOSX/._a.png",
        "v1.verylongname",
    ):
        left_out.add(name)
    left_out.add("link.png", "links")
    left_out.refuse("strange/", "unusable name: why")
    rows = left_out.rows()
    assert rows[0] == Rejected("mine/strange", "unusable name: why")
    assert rows[1] == Rejected(
        "mine/*.md", "left out .md: 2 files, such as in/a.MD; read: pictures", 2
    )
    assert count_kinds(rows) == {
        "left out .md": 2,
        "left out system files": 2,
        "unusable name": 1,
        "left out files without ending": 1,
        "left out other endings": 1,
        "left out links": 1,
    }


def test_the_number_of_endings_is_bounded() -> None:
    left_out = LeftOut("mine", "pictures")
    for number in range(1000):
        left_out.add(f"a.{number}")
    rows = left_out.rows()
    assert len(rows) <= 31
    assert sum(row.count for row in rows) == 1000


def test_rows_follow_the_portions() -> None:
    left_out = LeftOut("mine", "pictures")
    assert list(with_left_out([[1], [2]], left_out)) == [[1], [2]]
    left_out.add("a.md")
    left_out.add("b.bin")
    left_out.forget([".md"])
    assert [row.id for row in list(with_left_out([[1]], left_out))[-1]] == ["mine/*.bin"]
