"""What a file is, by its head alone: one table of magic numbers, of what is read and of what is refused by name."""

import re
from typing import BinaryIO

from pipeline.records import BadInput, ErrorCode, Stage

PDF = "application/pdf"
HEAD_BYTES = 1024  # what Acrobat accepts before the header of a PDF, and PDFium

_IMAGES = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (0, b"II+\0", "image/tiff"),
    (0, b"MM\0+", "image/tiff"),
)
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)

_UNPACK = "unpack it and give what is inside"
_VIDEO = "index_videos reads videos"
_IMAGE = "convert it to PNG, TIFF or PDF"
_NO_PAGES = "it has no pages"
_DECODE = "decode it and give what is inside"
_REFUSED = (  # (offset, signature, what it is, what would help)
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (0, b"PK\x07\x08", "a spanned zip archive", _UNPACK),
    (0, b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ\0", "compressed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK),
    (0, b"\x02\x21\x4c\x18", "compressed by lz4", _UNPACK),
    *((0, bytes([0x50 + kind]) + b"\x2a\x4d\x18", "compressed by zstd or lz4", _UNPACK) for kind in range(16)),
    (0, b"\xff\x06\0\0sNaPpY", "compressed by snappy", _UNPACK),
    *((0, b"\x78" + level, "compressed by zlib", _UNPACK) for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
    (0, b"]\0\0", "compressed by lzma", _UNPACK),
    (0, b"LZIP", "compressed by lzip", _UNPACK),
    (0, b"\x1f\x9d", "compressed by compress", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"MSCF", "a cabinet archive", _UNPACK),
    (0, b"\x60\xea", "an ARJ archive", _UNPACK),
    (2, b"-lh", "an LHA archive", _UNPACK),
    (7, b"**ACE**", "an ACE archive", _UNPACK),
    (0, b"ZOO ", "a zoo archive", _UNPACK),
    (0, b"StuffIt", "a StuffIt archive", _UNPACK),
    (0, b"SIT!", "a StuffIt archive", _UNPACK),
    (0, b"xar!", "a xar archive", _UNPACK),
    (0, b"\xed\xab\xee\xdb", "an RPM package", _UNPACK),
    (0, b"\0\5\x16\0", "a Macintosh file with its resources (AppleSingle)", _UNPACK),
    (0, b"\0\5\x16\7", "the resources of a Macintosh file (AppleDouble)", "the file itself lies beside it"),
    (0, b"!BDN", "an Outlook mailbox", "save its attachments and give these"),
    (0, b"\xcf\xad\x12\xfe", "an Outlook Express mailbox", "save its attachments and give these"),
    (0, b"bplist00", "a property list", _UNPACK),
    (0, b"JVBERi0", "a PDF in base64", _DECODE),
    (0, b"begin 6", "a file encoded by uuencode", _DECODE),
    (0, b"-----BEGIN ", "a signed or encrypted message (PEM)", _DECODE),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (0, b"!<arch>\n", "an ar archive", _UNPACK),
    (0, b"070701", "a cpio archive", _UNPACK),
    (0, b"070702", "a cpio archive", _UNPACK),
    (0, b"070707", "a cpio archive", _UNPACK),
    (0, b"\xc7\x71", "a cpio archive", _UNPACK),
    (0, b"\x71\xc7", "a cpio archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"WARC/", "a web archive (WARC)", _UNPACK),
    (0, b"\x78\x9f\x3e\x22", "a mail's attachments (TNEF)", _UNPACK),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document or mail (OLE)", "convert it to PDF"),
    (0, b"{\\rtf", "an RTF document", "convert it to PDF"),
    (0, b"%!PS", "PostScript", "convert it to PDF"),
    (0, b"\x04%!PS", "PostScript", "convert it to PDF"),
    (0, b"%FDF-", "the values of a form (FDF)", "give the PDF it is for"),
    (0, b"ITSF", "a help file (CHM)", "convert it to PDF"),
    (60, b"BOOKMOBI", "a Mobipocket book", "convert it to PDF"),
    (0, b"\xffWPC", "a WordPerfect document", "convert it to PDF"),
    (0, b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d", "a OneNote document", "convert it to PDF"),
    (0, b"AC10", "an AutoCAD drawing", "convert it to PDF"),
    (40, b" EMF", "a metafile (EMF)", "convert it to PDF"),
    (0, b"\xd7\xcd\xc6\x9a", "a metafile (WMF)", "convert it to PDF"),
    *((0, kind + b"WS", "a Flash movie", _NO_PAGES) for kind in (b"F", b"C", b"Z")),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)", "convert it to PDF"),
    (0, b"AT&TFORM", "a DjVu document", "convert it to PDF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", _IMAGE),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", _IMAGE),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", _IMAGE),
    (0, b"\xff\x0a", "a JPEG XL image", _IMAGE),
    (0, b"II\xbc\1", "a JPEG XR image", _IMAGE),
    (0, b"8BPS", "a Photoshop image", _IMAGE),
    (0, b"gimp xcf", "a GIMP image", _IMAGE),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", _IMAGE),
    (0, b"#?RADIANCE", "a Radiance image", _IMAGE),
    (0, b"SIMPLE  =", "a FITS image", _IMAGE),
    (128, b"DICM", "a DICOM image", _IMAGE),
    (0, b"\x8aMNG\r\n\x1a\n", "an MNG animation", _IMAGE),
    (0, b"\x8bJNG\r\n\x1a\n", "a JNG image", _IMAGE),
    (0, b"icns", "an icon", _IMAGE),
    (0, b"\0\0\2\0\1\0", "a cursor", _IMAGE),
    *((0, b"P%d%s" % (kind, space), "a PNM image", _IMAGE) for kind in range(1, 8) for space in (b"\n", b" ", b"\r")),
    (0, b"\0\0\1\0", "an icon", _IMAGE),
    (0, b"\x97JB2\r\n\x1a\n", "a JBIG2 image", _IMAGE),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", _VIDEO),
    (0, b"\x30\x26\xb2\x75", "a video or sound (ASF)", _VIDEO),
    (0, b"FLV\x01", "a video (FLV)", _VIDEO),
    (0, b"\0\0\x01\xba", "a video (MPEG)", _VIDEO),
    (0, b"\0\0\x01\xb3", "a video (MPEG)", _VIDEO),
    (0, b"OggS", "a video or sound (Ogg)", _VIDEO),
    (0, b"ID3", "a sound file", _NO_PAGES),
    (0, b"fLaC", "a sound file", _NO_PAGES),
    (0, b"\x7fELF", "a program", _NO_PAGES),
    (0, b"MZ", "a program", _NO_PAGES),
    (0, b"#!", "a script", _NO_PAGES),
    (0, b"\xca\xfe\xba\xbe", "a program", _NO_PAGES),
    *((0, magic, "a program", _NO_PAGES) for magic in (b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe")),
    (0, b"L\0\0\0\1\x14\2\0", "a link to a file", "give the file itself"),
    *((0, magic, "recorded network traffic", _UNPACK) for magic in (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4")),
    (0, b"\x0a\x0d\x0d\x0a", "recorded network traffic", _UNPACK),
    *((0, b"\x80" + bytes([version]), "a pickle of Python", _UNPACK) for version in range(2, 6)),
    (0, b"\x93NUMPY", "an array of NumPy", _NO_PAGES),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _NO_PAGES),
    (0, b"ARROW1\0\0", "an Arrow table", _NO_PAGES),
    (0, b"Obj\1", "an Avro table", _NO_PAGES),
    (4, b"Standard Jet DB", "a database", _NO_PAGES),
    (4, b"Standard ACE DB", "a database", _NO_PAGES),
    (0, b"\x1a\0\0\4", "a Notes database", _NO_PAGES),
    (0, b"SQLite format 3\0", "a database", _NO_PAGES),
    (0, b"PAR1", "a Parquet table", _NO_PAGES),
)
_SOUND = (  # (offset, signature) of files that hold sound alone, whatever picture is in their tags
    *((0, b"ID3"), (0, b"fLaC"), (8, b"WAVE"), (8, b"AIFF"), (8, b"AIFC"), (0, b"#!AMR"), (0, b"MThd"), (0, b"wvpk")),
    *((0, b"MAC "), (0, b"caff"), (0, b".snd"), (0, b"\x0b\x77"), (0, b"DSD "), (0, b"TTA1"), (0, b"MPCK")),
    *((0, b"\xff" + second) for second in (b"\xfb", b"\xfa", b"\xf3", b"\xf2", b"\xf1", b"\xf9")),  # MPEG, ADTS
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"avif", b"avis")
_OFFICE = (  # names of members, in the head of a zip, that say what it holds
    (b"[Content_Types].xml", "an office document (docx, xlsx, pptx) or XPS"),
    (b"word/", "an office document (docx)"),
    (b"xl/", "an office document (xlsx)"),
    (b"ppt/", "an office document (pptx)"),
    (b"_rels/.rels", "an office document (docx, xlsx, pptx) or XPS"),
    (b"mimetypeapplication/epub", "an EPUB book"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file"),
)
_MARKUP = (  # how text begins, small letters, behind white space
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<head", "an HTML page"),
    (b"<body", "an HTML page"),
    (b"<?xml", "an XML file"),
    (b"<svg", "an SVG drawing"),
    (b"<!--", "an HTML page"),
    (b"<script", "an HTML page"),
    (b"<div", "an HTML page"),
    (b"<?php", "a script"),
    (b"{", "a JSON or text file"),
    (b"[", "a JSON or text file"),
)
_MAIL_HEADERS = (
    *(b"from", b"received", b"return-path", b"delivered-to", b"message-id", b"mime-version", b"subject", b"to"),
    *(
        b"x-mozilla-status",
        b"x-account-key",
        b"reply-to",
        b"dkim-signature",
        b"envelope-to",
        b"arc-seal",
        b"bcc",
        b"cc",
    ),
)
_PKCS7 = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07"  # the object identifier of signed and enveloped data
_HEADER_BYTES = 16
_HEADER = re.compile(rb"%PDF-\d\.\d\s*[\r\n%]")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of Unicode, before a text


def sniff(file: BinaryIO) -> str:
    """The media type by content. Raises BadInput for an empty file and for a type that is not read here, named."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise BadInput(Stage.OPEN, ErrorCode.EMPTY_FILE, "the file has 0 bytes")
    if head.startswith(b"%PDF-") and not _is_tar(head):
        return PDF
    if media_type := _image_type(head):
        return media_type
    if named := _refused(head):
        what, remedy = named
        raise BadInput(Stage.OPEN, ErrorCode.UNSUPPORTED_TYPE, f"this is {what}: {remedy}")
    # Behind a byte order mark, blank lines, a printer's or a server's lines it is a PDF all the same; a text about PDFs
    # is none.
    if b"%PDF-" in head and (_HEADER.search(head + file.read(_HEADER_BYTES)) or not _is_text(head)):
        return PDF
    what = "a text" if _is_text(head) else "neither a PDF nor a known image"
    raise BadInput(Stage.OPEN, ErrorCode.UNSUPPORTED_TYPE, f"this is {what}; it begins {head[:8]!r}")


def still_or_sound(head: bytes) -> tuple[ErrorCode, str] | None:
    """Why a file that begins so is no video, and what it is, where FFmpeg would take it for one or not know it."""
    if any(head.startswith(signature, offset) for offset, signature in _SOUND):
        return ErrorCode.NO_VIDEO, "a sound file"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return ErrorCode.UNSUPPORTED_TYPE, "a HEIF or AVIF image"
    if media_type := _image_type(head):
        return ErrorCode.UNSUPPORTED_TYPE, f"an image ({media_type})"
    return None


def what_it_is(head: bytes) -> str:
    """In words, for a message; "" where nothing in the head says."""
    if head.startswith(b"%PDF-"):
        return "a PDF"
    named = _refused(head)
    if named:
        return named[0]
    return "a text" if _is_text(head) else ""


def _image_type(head: bytes) -> str:
    for offset, signature, media_type in _IMAGES:
        if head.startswith(signature, offset):
            return media_type
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    is_bmp = head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES
    return "image/bmp" if is_bmp else ""


def _refused(head: bytes) -> tuple[str, str] | None:
    """What the file is, and what would help; None where nothing in its head says."""
    if head.startswith(b"PK\x03\x04"):
        for name, what in _OFFICE:
            if name in head:
                return what, "convert it to PDF"
    for offset, signature, what, remedy in _REFUSED:
        if head.startswith(signature, offset):
            return what, remedy
    if _is_tar(head):
        return "a tar archive", _UNPACK
    before = head.partition(b"%PDF-")[0]
    if b"PK\x03\x04" in before:
        return "a zip archive behind something else", _UNPACK
    if head.startswith(b"\x30") and _PKCS7 in head[:64]:
        return "a signed or encrypted document (PKCS #7)", "take the document out of it"
    if b"LANGUAGE=POSTSCRIPT" in before.upper().replace(b" ", b""):
        return "PostScript in a printer's lines", "convert it to PDF"
    return _media(head) or _text_kind(head)


def _media(head: bytes) -> tuple[str, str] | None:
    if head[4:8] == b"ftyp":
        is_image = head[8:12] in _HEIF_BRANDS
        return ("a HEIF or AVIF image", _IMAGE) if is_image else ("a video or sound (MP4)", _VIDEO)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"skip"):
        return "a video (QuickTime)", _VIDEO
    if head.startswith((b"RIFF", b"RF64")) or (head.startswith(b"FORM") and head[8:11] == b"AIF"):
        return "a video or sound (RIFF)", _VIDEO
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "a video (MPEG-TS)", _VIDEO
    if head[:1] == b"\xff" and head[1:2] in (b"\xfb", b"\xfa", b"\xf3", b"\xf2", b"\xf1", b"\xf9"):
        return "a sound file", _NO_PAGES
    return None


def _text_kind(head: bytes) -> tuple[str, str] | None:
    text = head
    for mark in _MARKS:
        text = text.removeprefix(mark)
    text = text.replace(b"\0", b"") if text is not head else text  # UTF-16
    text = text.lstrip().lower()
    for start, what in _MARKUP:
        if text.startswith(start):
            return what, "convert it to PDF"
    if _is_mail(text):
        return "a mail (or a mailbox, or an MHTML page)", "save its attachments and give these"
    return None


def _is_mail(text: bytes) -> bool:
    """Whether `text`, small letters, begins with the headers of a mail or an upload; a web server's begin otherwise."""
    if text.startswith((b"from ", b">from ")):  # the line between the mails of a mailbox
        return True
    lines = text.partition(b"%pdf-")[0].splitlines()
    if lines and lines[0].startswith(b"--") and any(line.startswith(b"content-") for line in lines[1:3]):
        return True
    if lines and lines[0].strip().isdigit():  # Apple's mails say first how long they are
        lines = lines[1:]
    first = lines[0].partition(b":") if lines else (b"", b"", b"")
    if not first[1] or b" " in first[0]:
        return False
    names = {line.partition(b":")[0] for line in lines if b":" in line}
    return not names.isdisjoint(_MAIL_HEADERS)


def _is_tar(head: bytes) -> bool:
    """Also of before POSIX, which has no magic: the sum of the header's bytes stands in it."""
    field = head[148:156].strip(b"\0 ")
    if len(head) < 512 or not field.isdigit() or any(digit in field for digit in b"89"):
        return False
    return int(field, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:512])


def _is_text(head: bytes) -> bool:
    """In ASCII, UTF-8 or a code page of a language that is mostly ASCII."""
    if any(byte < 9 or 13 < byte < 27 for byte in head):
        return False
    try:
        head[:-3].decode()
    except UnicodeDecodeError:
        return sum(byte < 128 for byte in head) > 0.7 * len(head)
    return True
