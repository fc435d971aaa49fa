"""Small pictures with texts, written by the formats' own writer."""

from html import escape
from io import BytesIO

from PIL import Image, PngImagePlugin

XMP_NAMES = {"description": "dc:description", "comment": "exif:UserComment"}


def png(**texts: str) -> BytesIO:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("_", "-") if name == "sd_metadata" else name, text)
    sink = BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "PNG", pnginfo=info)
    return sink


def exif_picture(form: str, tags: dict[int, str], comment: bytes | None = None) -> BytesIO:
    exif = Image.Exif()
    for tag, text in tags.items():
        exif[tag] = text
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = comment
    sink = BytesIO()
    Image.new("RGB", (8, 8)).save(sink, form, exif=exif.tobytes())
    return sink


def with_xmp(form: str, creator: str = "", **values: str) -> BytesIO:
    """Return a picture whose XMP holds a description, a comment and the tool that wrote it."""
    elements = "".join(
        f"<{XMP_NAMES[name]}><rdf:Alt><rdf:li xml:lang='x-default'>{escape(text, quote=False)}"
        f"</rdf:li></rdf:Alt></{XMP_NAMES[name]}>"
        for name, text in values.items()
    )
    xmp = (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF><rdf:Description>"
        f"<xmp:CreatorTool>{creator}</xmp:CreatorTool>{elements}"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    if form == "PNG":
        return png(**{"XML:com.adobe.xmp": xmp})
    sink = BytesIO()
    Image.new("RGB", (8, 8)).save(sink, form, xmp=xmp.encode())
    return sink
