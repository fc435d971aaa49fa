"""The contact sheet of a run: pictures from all over its shards."""

from img2prompt.data.shards import read_rows, spaced_rows
from img2prompt.draft import Draft
from img2prompt.generate.shards import PICTURES
from img2prompt.report.contact_sheet import SheetPicture, contact_sheet
from img2prompt.storage import join

SHEET = "contact_sheet.html"

_COLUMNS = [
    "id",
    "prompt",
    "image",
    "seed",
    "sampler",
    "step",
    "cfg",
    "width",
    "height",
    "generator",
]


def write_sheet(draft: Draft, count: int) -> None:
    """Write a page with `count` evenly spaced pictures, or all if they are fewer; 0: no page."""
    receipts = draft.receipts()
    names = [name for name in sorted(receipts) if name.startswith(PICTURES)]
    sizes = [receipts[name].rows for name in names]
    pictures = sum(sizes)
    if not count or not pictures:
        return
    rows = []
    for file, row in spaced_rows(sizes, count):
        rows += read_rows(join(draft.uri, names[file]), row, row + 1, _COLUMNS).to_pylist()
    first = rows[0]
    facts = {
        "pictures": f"{pictures:,}",
        "generator": first["generator"],
        "sampler": f"{first['sampler']}, {first['step']} steps, guidance {first['cfg']:g}",
        "size": f"{first['width']} x {first['height']}",
    }
    shown = [
        SheetPicture(row["image"]["bytes"], row["prompt"], f"{row['id']}, seed {row['seed']}")
        for row in rows
    ]
    page = contact_sheet(f"{len(rows)} of {pictures:,} generated pictures", facts, shown)
    draft.write_bytes(SHEET, page.encode(), rows=0)
