"""Which JPEGs are decoded at a reduced scale with little memory.

libjpeg computes the inverse cosine transform of a block at 1/2, 1/4 or 1/8 of its sides. It needs a
few rows of blocks at once when the file has one scan. With several scans (progressive pictures) it
keeps the coefficients of the whole picture, 2 bytes for each, whatever the scale.
"""

REDUCTIONS = (2, 4, 8)

_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_OTHER_FRAMES = (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_START_OF_SCAN = 0xDA
_WITHOUT_CONTENT = (0x01, *range(0xD0, 0xD9))
_FRAME_COMPONENTS = 9  # byte of the number of components, from the marker


def is_streamed_jpeg(data: bytes) -> bool:
    """Return whether a file is a sequential JPEG whose first scan has all its components."""
    if not data.startswith(b"\xff\xd8"):
        return False
    position, components = 2, 0
    while position + _FRAME_COMPONENTS < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _START_OF_SCAN:
            return components > 0 and data[position + 4] == components
        if marker in _OTHER_FRAMES:
            return False
        if marker in _SEQUENTIAL_FRAMES:
            components = data[position + _FRAME_COMPONENTS]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _WITHOUT_CONTENT:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
