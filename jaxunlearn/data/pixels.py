"""A picture file as pixels: JPEG, PNG and WebP in every mode they have, as RGB or grey of 8 bits.

- What is transparent lies over white, at every depth: an alpha channel, a palette with alpha, or
  one clear colour (PNG's tRNS).
- Grey of 16 bits becomes round(v / 257). Of colours of 16 bits PIL reads the high byte, at most one
  level below that; one clear colour among them is bad input.
- CMYK and YCCK are inverted, as Adobe writes them: R = (255 - C)(255 - K) / 255.
- Grey of colours is the luma of BT.601. Colour profiles are ignored. The picture is turned as its
  EXIF says. Of an animation, or a JPEG of several pictures (MPO), the first is read.
- The format is told by the content, whatever the suffix says.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {3: "RGB", 1: "L"}
ANIMATED = ("PNG", "WEBP")
WHOLE = 26  # bytes up to a PNG's depth and type of colour
OTHERS = (  # how the files begin that are found in place of a picture
  (b"GIF8", "a GIF"),
  (b"BM", "a BMP"),
  (b"II*\0", "a TIFF"),
  (b"MM\0*", "a TIFF"),
  (b"%PDF", "a PDF"),
  (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull"),
  (b"<", "HTML or XML"),
)
BRANDS = {
  b"heic": "a HEIC",
  b"heix": "a HEIC",
  b"mif1": "a HEIC",
  b"avif": "an AVIF",
}  # of ISO media files


@contextlib.contextmanager
def opened(file: io.BytesIO | io.BufferedReader) -> Iterator[tuple[Image.Image, int]]:
  """The picture, its pixels not yet read, and how many bits each channel has."""
  head = file.read(WHOLE)
  file.seek(0)
  try:
    image = Image.open(file, formats=FORMATS)
  except UnidentifiedImageError as error:
    raise ValueError(f"not a JPEG, PNG or WebP image{_but(head)}") from error
  with image:
    yield image, head[24] if head.startswith(b"\x89PNG") else 8


def check_mode(image: Image.Image, mode: str) -> None:
  """Raises ValueError for a picture that is in another mode, or has something transparent."""
  clear = image.has_transparency_data
  if image.mode != mode or clear:
    raise ValueError(f"mode {image.mode}{' with transparency' if clear else ''}, not {mode}")


def animated(image: Image.Image) -> bool:
  return image.format in ANIMATED and getattr(image, "is_animated", False)


def square(image: Image.Image, bits: int, mode: str, size: int, resize: str) -> np.ndarray:
  """uint8 [size, size, channels] of the middle."""
  flat = centre(to_mode(ImageOps.exif_transpose(image), mode, bits))
  pixels = np.asarray(flat.resize((size, size), Image.Resampling[resize.upper()]))
  return pixels.reshape(size, size, -1)


def to_mode(image: Image.Image, mode: str, bits: int = 8) -> Image.Image:
  """RGB or L of any mode, whose samples had so many bits in the file."""
  clear = _clear(image, bits)
  if image.mode.startswith("I"):  # PIL itself would clip at 255
    image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
  if clear is not None:
    image.info.pop("transparency", None)
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
  if image.has_transparency_data:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
  return image.convert(mode)


def _clear(image: Image.Image, bits: int) -> np.ndarray | None:
  """bool [H, W]: where the picture has its one clear colour; None where it has none.

  PIL gives samples of 1, 2 and 4 bits as 8, and the clear one as it stands in the file.
  """
  colour = image.info.get("transparency")
  if colour is None or image.mode not in ("1", "L", "RGB", "I;16"):
    return None
  if image.mode == "RGB" and bits > 8:
    raise ValueError("one clear colour of 16 bits, of which PIL reads 8; save it with alpha")
  most = 2**bits - 1
  scale = 1 if bits > 8 else 255 // most
  value = (np.array(colour) & most) * scale
  samples = np.asarray(image.convert("L") if image.mode == "1" else image)
  same = samples == value
  return same.all(axis=-1) if image.mode == "RGB" else same


def centre(image: Image.Image) -> Image.Image:
  """The largest square in the middle; an odd pixel too many is cut at the right or the bottom."""
  side = min(image.size)
  left, top = ((length - side) // 2 for length in image.size)
  return image.crop((left, top, left + side, top + side))


def reason(error: Exception) -> str:
  """Why a file cannot be read, in one line."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return (str(error).splitlines() or [type(error).__name__])[0]


def _but(head: bytes) -> str:
  """What a file is in place of a picture, where its beginning tells."""
  if not head:
    return ": it is empty"
  kind = BRANDS.get(head[8:12], "") if head[4:8] == b"ftyp" else ""
  kind = kind or next((name for start, name in OTHERS if head.startswith(start)), "")
  return f": it is {kind}" if kind else ""
