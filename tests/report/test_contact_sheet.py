import base64
import re
from io import BytesIO

from PIL import Image

from img2prompt.report.contact_sheet import SIDE, SheetPicture, contact_sheet


def png(width: int, height: int) -> bytes:
    sink = BytesIO()
    Image.new("RGB", (width, height), "red").save(sink, "PNG")
    return sink.getvalue()


def test_a_sheet_has_small_pictures_and_escaped_prompts() -> None:
    pictures = [
        SheetPicture(png(768, 512), 'a "red" <cat>', "seed 1"),
        SheetPicture(png(16, 8), "b", "seed 2"),
    ]
    page = contact_sheet("Two pictures", {"sampler": "ddim"}, pictures)
    assert "<cat>" not in page
    assert "a &#34;red&#34; &lt;cat&gt;" in page
    assert "<dt>sampler</dt><dd>ddim</dd>" in page
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sizes = [Image.open(BytesIO(base64.b64decode(source))).size for source in sources]
    assert sizes == [(SIDE, SIDE * 2 // 3), (16, 8)]
    assert len(page) < 50_000  # no plotly.js without charts
