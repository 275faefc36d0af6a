"""A decoded picture is right in every mode that PNG, JPEG and WebP have: values by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from jaxunlearn.data import pixels

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's types of colour
SIDE = 4


def chunk(kind, body):
  return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples, depth, colour, **chunks):
  """A PNG of the samples [H, W, channels] as they are, with chunks like tRNS=bytes."""
  samples = np.asarray(samples, np.uint16)
  height, width = samples.shape[:2]
  wide = np.unpackbits(samples[..., None].astype(">u2").view(np.uint8), axis=-1)
  rows = np.packbits(wide[..., 16 - depth :].reshape(height, -1), axis=1)
  raw = b"".join(b"\0" + row.tobytes() for row in rows)
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  middle = b"".join(chunk(kind.encode(), body) for kind, body in chunks.items())
  body = chunk(b"IHDR", header) + middle + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def two(left, right):
  """Samples [SIDE, SIDE, channels]: the left half of one value, the right half of another."""
  halves = [np.broadcast_to(np.atleast_1d(v), (SIDE, SIDE // 2, np.size(v))) for v in (left, right)]
  return np.concatenate(halves, axis=1)


def decoded(raw, mode="RGB"):
  with pixels.opened(io.BytesIO(raw)) as (image, bits):
    return pixels.square(image, bits, mode, min(image.size), "box")


def halves(raw, mode="RGB"):
  """The values of the left half and of the right half, each of one colour."""
  image = decoded(raw, mode)
  left, right = image[:, : SIDE // 2].reshape(-1, image.shape[-1]), image[:, SIDE // 2 :]
  right = right.reshape(-1, image.shape[-1])
  assert (left == left[0]).all() and (right == right[0]).all()
  return left[0].tolist(), right[0].tolist()


def shorts(*values):
  return struct.pack(f">{len(values)}H", *values)


WHITE = [255] * 3
COLOURS = bytes((10, 20, 30, 200, 100, 0, 1, 2, 3))
PNGS = {  # the file, RGB of the left half, of the right half
  "1 bit": (png(two(1, 0), 1, GREY), WHITE, [0] * 3),
  "2 bits": (png(two(1, 2), 2, GREY), [85] * 3, [170] * 3),
  "4 bits": (png(two(1, 9), 4, GREY), [17] * 3, [153] * 3),
  "8 bits": (png(two(1, 9), 8, GREY), [1] * 3, [9] * 3),
  "16 bits": (png(two(1000, 65535), 16, GREY), [4] * 3, WHITE),  # 1000 / 257 = 3.9
  "16 bits rounded": (png(two(128, 129), 16, GREY), [0] * 3, [1] * 3),  # 0.498 and 0.502
  "1 bit clear": (png(two(0, 1), 1, GREY, tRNS=shorts(0)), WHITE, WHITE),
  "2 bits clear": (png(two(1, 2), 2, GREY, tRNS=shorts(1)), WHITE, [170] * 3),
  "4 bits clear": (png(two(1, 9), 4, GREY, tRNS=shorts(9)), [17] * 3, WHITE),
  "8 bits clear": (png(two(1, 9), 8, GREY, tRNS=shorts(9)), [1] * 3, WHITE),
  "16 bits clear": (png(two(1000, 1001), 16, GREY, tRNS=shorts(1001)), [4] * 3, WHITE),
  "clear and not there": (png(two(17, 34), 8, GREY, tRNS=shorts(1)), [17] * 3, [34] * 3),
  "clear beyond its depth": (png(two(1, 2), 2, GREY, tRNS=shorts(0x101)), WHITE, [170] * 3),
  "rgb": (png(two((1, 2, 3), (4, 5, 6)), 8, RGB), [1, 2, 3], [4, 5, 6]),
  "rgb clear": (png(two((1, 2, 3), (1, 2, 4)), 8, RGB, tRNS=shorts(1, 2, 3)), WHITE, [1, 2, 4]),
  "rgb of 16": (png(two((256, 511, 512), (0, 255, 65535)), 16, RGB), [1, 1, 2], [0, 0, 255]),
  "palette": (png(two(0, 1), 8, PALETTE, PLTE=COLOURS), [10, 20, 30], [200, 100, 0]),
  "palette of 1": (png(two(0, 1), 1, PALETTE, PLTE=COLOURS[:6]), [10, 20, 30], [200, 100, 0]),
  "palette of 2": (png(two(2, 1), 2, PALETTE, PLTE=COLOURS), [1, 2, 3], [200, 100, 0]),
  "palette of 4": (png(two(2, 1), 4, PALETTE, PLTE=COLOURS), [1, 2, 3], [200, 100, 0]),
  "palette clear": (
    png(two(0, 1), 8, PALETTE, PLTE=COLOURS, tRNS=b"\0"),  # the rest is opaque
    *(WHITE, [200, 100, 0]),
  ),
  "palette half": (
    png(two(0, 1), 4, PALETTE, PLTE=COLOURS, tRNS=bytes((255, 51))),
    *([10, 20, 30], [244, 224, 204]),  # 255 - 0.2 (255 - v)
  ),
  "alpha": (png(two((90, 0), (90, 51)), 8, GREY_ALPHA), WHITE, [222] * 3),
  "alpha of 16": (
    png(two((90 * 257, 65535), (90 * 257, 51 * 257)), 16, GREY_ALPHA),
    *([90] * 3, [222] * 3),
  ),
  "rgba": (png(two((200, 0, 40, 51), (1, 2, 3, 255)), 8, RGBA), [244, 204, 212], [1, 2, 3]),
  "rgba of 16": (
    png(two(tuple(257 * v for v in (200, 0, 40, 51)), (257, 514, 771, 65535)), 16, RGBA),
    *([244, 204, 212], [1, 2, 3]),
  ),
}


@pytest.mark.parametrize("kind", PNGS)
def test_png(kind):
  raw, left, right = PNGS[kind]
  assert halves(raw) == (left, right)


def test_one_clear_colour_of_16_bits_is_refused():
  raw = png(two((256, 511, 512), (256, 511, 513)), 16, RGB, tRNS=shorts(256, 511, 512))
  with pytest.raises(ValueError, match="one clear colour of 16 bits, of which PIL reads 8"):
    decoded(raw)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_stays_grey(depth):
  most = 2**depth - 1
  assert halves(png(two(0, most), depth, GREY), "L") == ([0], [255])
  assert halves(png(two(0, most), depth, GREY, tRNS=shorts(0)), "L") == ([255], [255])


def test_a_palette_with_alpha_of_its_own():
  image = Image.new("P", (SIDE, SIDE), 1)
  image.putpalette([0, 0, 0, 200, 0, 40])
  image.putalpha(51)
  assert image.mode == "PA"
  assert pixels.to_mode(image, "RGB").getpixel((0, 0)) == (244, 204, 212)


def jpeg(colour, mode, **options):
  stream = io.BytesIO()
  Image.new(mode, (8, 8), colour).save(stream, "JPEG", quality=100, **options)
  return stream.getvalue()


def as_ycck(raw):
  """The file with its components said to be YCCK: the Adobe marker's last byte."""
  place = raw.index(b"Adobe") + 11
  assert raw[place] == 0
  return raw[:place] + b"\2" + raw[place + 1 :]


JPEGS = {  # the file, its RGB
  "grey": (jpeg(90, "L"), [90] * 3),
  "rgb": (jpeg((200, 10, 40), "RGB"), [200, 10, 40]),
  "cmyk": (jpeg((51, 255, 0, 0), "CMYK"), [204, 0, 255]),
  "cmyk and black": (jpeg((51, 102, 0, 128), "CMYK"), [102, 76, 127]),  # 204 (255 - 128) / 255
  "black": (jpeg((0, 0, 0, 255), "CMYK"), [0] * 3),
  # Stored Y = 100, Cb = Cr = 128 and K = 255 (no ink): R = G = B = 100, inverted.
  "ycck": (as_ycck(jpeg((155, 127, 127, 0), "CMYK")), [155] * 3),
  "ycck and black": (as_ycck(jpeg((155, 127, 127, 204), "CMYK")), [31] * 3),  # 155 51 / 255
  # Stored Cr = 178: R = 100 + 1.402 50 = 170, G = 100 - 0.714 50 = 64, B = 100.
  "ycck red": (as_ycck(jpeg((155, 127, 77, 0), "CMYK")), [85, 191, 155]),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg(kind):
  raw, colour = JPEGS[kind]
  assert np.abs(decoded(raw).astype(int) - colour).max() <= 1


def stored(image, kind, **options):
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


@pytest.mark.parametrize(
  ("mode", "colour", "rgb"),
  [
    ("RGB", (1, 2, 3), [1, 2, 3]),
    ("RGBA", (200, 0, 40, 51), [244, 204, 212]),
    ("RGBA", (200, 0, 40, 0), WHITE),
    ("L", 9, [9] * 3),
  ],
)
def test_webp(mode, colour, rgb):
  raw = stored(Image.new(mode, (SIDE, SIDE), colour), "WEBP", lossless=True, exact=True)
  assert halves(raw) == (rgb, rgb)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind):
  frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ((1, 2, 3), (9, 9, 9))]
  raw = stored(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
  with pixels.opened(io.BytesIO(raw)) as (image, _):
    assert pixels.animated(image)
  assert halves(raw) == ([1, 2, 3], [1, 2, 3])
  with pixels.opened(io.BytesIO(stored(frames[0], kind))) as (image, _):
    assert not pixels.animated(image)


def test_of_a_jpeg_of_several_pictures_the_first_is_read():
  frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 10, 40), (9, 9, 9))]
  raw = stored(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100)
  assert np.abs(decoded(raw).astype(int) - (200, 10, 40)).max() <= 1
  with pixels.opened(io.BytesIO(raw)) as (image, _):
    assert not pixels.animated(image)


@pytest.mark.parametrize("kind", ["16 bits", "1 bit", "4 bits clear", "palette clear", "alpha"])
def test_a_turned_picture_of_any_mode(kind):
  raw = PNGS[kind][0]
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 3  # by 180 degrees
  turned = raw[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + raw[-12:]
  assert halves(turned) == halves(raw)[::-1]


@pytest.mark.parametrize(
  ("raw", "what"),
  [
    (b"", "it is empty"),
    (b"GIF89a", "it is a GIF"),
    (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC"),
    (b"\0\0\0\x18ftypavif\0\0\0\0", "it is an AVIF"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; run git lfs pull"),
    (b"<!DOCTYPE html>", "it is HTML or XML"),
  ],
)
def test_what_is_no_picture_is_named(raw, what):
  with pytest.raises(ValueError, match=f"^not a JPEG, PNG or WebP image: .*{what}$"):
    decoded(raw)
