"""What a file is, its head decides: archives and mails that hold PDFs are no PDFs, PDFs behind a little junk are."""

import bz2
import gzip
import io
import lzma
import mailbox
import tarfile
import zipfile
import zlib
from email.message import EmailMessage
from pathlib import Path

import pytest

from pipeline.media_types import PDF, sniff
from pipeline.records import BadInput
from tests.pipeline.document_files import PdfPage, pdf_bytes

ONE_PAGE = pdf_bytes([PdfPage()])


def zipped(how: int, *members: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name in members:
            archive.writestr(name, ONE_PAGE)
    return file.getvalue()


def tarred(how: int, *members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=how) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def before_posix(tar: bytes) -> bytes:
    """The same header without its magic: a tar as Unix V7 wrote it."""
    header = bytearray(tar[:512])
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar[512:]


def mail(**headers: str) -> bytes:
    message = EmailMessage()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    message["MIME-Version"] = "1.0"
    message["Content-Type"] = "application/pdf"
    message["Content-Transfer-Encoding"] = "binary"
    return message.as_bytes() + ONE_PAGE


def mbox(folder: Path) -> bytes:
    box = mailbox.mbox(folder / "mails")
    box.add(b"Subject: one\n\n" + ONE_PAGE)
    box.close()
    return (folder / "mails").read_bytes()


def encrypted_zip() -> bytes:
    data = bytearray(zipped(zipfile.ZIP_STORED, "a.pdf"))
    data[6] |= 1
    return bytes(data)


TAR = tarred(tarfile.USTAR_FORMAT, ("one.pdf", ONE_PAGE))
OTHERS = {
    "stored zip": (zipped(zipfile.ZIP_STORED, "a.pdf", "b.pdf"), "zip archive"),
    "deflated zip": (zipped(zipfile.ZIP_DEFLATED, "a.pdf"), "zip archive"),
    "empty zip": (zipped(zipfile.ZIP_STORED), "zip archive"),
    "encrypted zip": (encrypted_zip(), "zip archive"),
    "zip behind a program": (b"MZ" + bytes(60) + zipped(zipfile.ZIP_STORED, "a.pdf"), "a program"),
    "zip behind a script": (b"#!/bin/sh\nexec x\n" + zipped(zipfile.ZIP_STORED, "a.pdf"), "a script"),
    "zip behind zeros": (bytes(100) + zipped(zipfile.ZIP_STORED, "a.pdf"), "zip archive"),
    "docx": (zipped(zipfile.ZIP_STORED, "[Content_Types].xml", "word/document.xml"), "office document"),
    "epub": (b"PK\3\4" + bytes(26) + b"mimetypeapplication/epub+zip" + ONE_PAGE, "EPUB"),
    "ustar": (TAR, "tar archive"),
    "GNU tar": (tarred(tarfile.GNU_FORMAT, ("a" * 200 + ".pdf", ONE_PAGE)), "tar archive"),
    "pax tar": (tarred(tarfile.PAX_FORMAT, ("ü" * 150 + ".pdf", ONE_PAGE)), "tar archive"),
    "tar of a text first": (tarred(tarfile.USTAR_FORMAT, ("a.txt", b"hello"), ("b.pdf", ONE_PAGE)), "tar archive"),
    "tar before POSIX": (before_posix(TAR), "tar archive"),
    "tar of a member named like a PDF": (tarred(tarfile.USTAR_FORMAT, ("%PDF-1.7", ONE_PAGE)), "tar archive"),
    "gzip": (gzip.compress(ONE_PAGE, 0), "gzip"),
    "bzip2": (bz2.compress(ONE_PAGE), "bzip2"),
    "xz": (lzma.compress(ONE_PAGE), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x20\x00" + ONE_PAGE, "zstd"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + ONE_PAGE, "7z archive"),
    "rar": (b"Rar!\x1a\x07\x01\0" + ONE_PAGE, "RAR archive"),
    "cpio": (b"070701" + b"0" * 104 + b"a.pdf\0" + ONE_PAGE, "cpio archive"),
    "ar": (b"!<arch>\na.pdf/          0           0     0     644     9         `\n" + ONE_PAGE, "ar archive"),
    "warc": (b"WARC/1.0\r\nWARC-Type: response\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + ONE_PAGE, "WARC"),
    "tnef": (b"\x78\x9f\x3e\x22" + bytes(20) + ONE_PAGE, "TNEF"),
    "mail": (mail(From="a@b.c", Subject="hello"), "mail"),
    "mail that begins with where it went": (mail(Received="from x by y", To="a@b.c"), "mail"),
    "mail that begins with its kind": (
        b"Content-Type: application/pdf\r\nMIME-Version: 1.0\r\n\r\n" + ONE_PAGE,
        "mail",
    ),
    "Apple's mail": (b"1234      \nReturn-Path: <a@b>\nSubject: x\n\n" + ONE_PAGE, "mail"),
    "an upload": (
        b'------Form\r\nContent-Disposition: form-data; filename="a.pdf"\r\n'
        b"Content-Type: application/pdf\r\n\r\n" + ONE_PAGE,
        "mail",
    ),
    "signed": (b"\x30\x82\x10\0\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02" + bytes(30) + ONE_PAGE, "PKCS #7"),
    "Outlook": (b"!BDN" + bytes(300) + ONE_PAGE, "mailbox"),
    "lha": (b"\x1d\0-lh0-" + bytes(20) + ONE_PAGE, "LHA"),
    "arj": (b"\x60\xea" + bytes(30) + ONE_PAGE, "ARJ"),
    "stored zlib": (zlib.compress(ONE_PAGE, 0), "zlib"),
    "lzma": (lzma.compress(ONE_PAGE, format=lzma.FORMAT_ALONE), "lzma"),
    "old lz4": (b"\x02\x21\x4c\x18" + ONE_PAGE, "lz4"),
    "zstd with a frame to skip": (b"\x50\x2a\x4d\x18\4\0\0\0abcd\x28\xb5\x2f\xfd" + ONE_PAGE, "zstd"),
    "property list": (b"bplist00" + ONE_PAGE, "property list"),
    "pickle": (b"\x80\x04\x95" + bytes(9) + ONE_PAGE, "pickle"),
    "dicom": (bytes(128) + b"DICM" + bytes(200) + ONE_PAGE, "DICOM"),
    "chm": (b"ITSF" + bytes(200) + ONE_PAGE, "CHM"),
    "mobi": (b"title" + bytes(55) + b"BOOKMOBI" + ONE_PAGE, "Mobipocket"),
    "network traffic": (b"\xd4\xc3\xb2\xa1" + bytes(60) + ONE_PAGE, "traffic"),
    "values of a form": (b"%FDF-1.2\n%\xe2\xe3\n1 0 obj <</F (%PDF-1.4)>>\n" + ONE_PAGE, "FDF"),
    "postscript in a printer's lines": (
        b"\x1b%-12345X@PJL JOB\n@PJL ENTER LANGUAGE = POSTSCRIPT\n%!PS\n%PDF-1.4\n",
        "PostScript",
    ),
    "postscript behind a mark": (b"\x04%!PS-Adobe\n%PDF-1.4\n", "PostScript"),
    "html comment": (b"<!-- saved --><html>%PDF-1.4\n", "HTML"),
    "script": (b"<script>location = '/login'</script>", "HTML"),
    "php": (b"<?php\n%PDF-1.4\n", "script"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "base64": (b"JVBERi0xLjcK" * 9, "base64"),
    "a program's source": (b"import x\nif data.startswith(b'%PDF-1.4'):\n    pass\n", "a text"),
    "a text about PDFs": (b"# Title\n\nThe header is %PDF-1.7 and so on", "a text"),
    "a table": (b"uri,name\n%PDF-1.4,x\n", "a text"),
    "Russian": ("Отчёт о файлах".encode() + b" %PDF-1.4!", "a text"),
    "ppm": (b"P6\n10 10\n255\n" + bytes(300), "PNM"),
    "zeros": (bytes(2000), "neither"),
    "ones": (b"\xff" * 2000, "neither"),
    "html": (b"\n<!DOCTYPE html><p>%PDF-1.4</p>", "HTML"),
    "html in UTF-16": ("\ufeff<html><p>page</p>".encode("utf-16-le"), "HTML"),
    "xml": (b"\xef\xbb\xbf<?xml version='1.0'?><pdf>%PDF-1.4</pdf>", "XML"),
    "json": (b'{"content": "%PDF-1.4"}', "JSON"),
    "text": (b"a plain text\n", "a text"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%Title: a.pdf %PDF-1.4\n", "PostScript"),
    "eps with preview": (b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS %PDF-1.4", "PostScript"),
    "djvu": (b"AT&TFORM\0\0\1\0DJVM", "DjVu"),
    "rtf": (b"{\\rtf1 %PDF-1.4}", "RTF"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(40) + ONE_PAGE, "OLE"),
    "mp4": (b"\0\0\0\x18ftypmp42" + bytes(40), "video"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIF"),
    "mkv": (b"\x1a\x45\xdf\xa3" + bytes(40), "video"),
    "mpeg-ts": ((b"\x47" + bytes(187)) * 4, "video"),
    "mp3": (b"ID3\x04" + bytes(40), "sound"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt ", "sound"),
}
JUNK = {
    "nothing": b"",
    "byte order mark": b"\xef\xbb\xbf",
    "blank lines": b"\r\n\n  \n",
    "a server's headers": b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: application/pdf\r\n\r\n",
    "a server's headers without its status": b"Content-Type: application/pdf\r\nContent-Length: 900\r\n\r\n",
    "a printer's lines": b"\x1b%-12345X@PJL JOB\r\n@PJL ENTER LANGUAGE=PDF\r\n",
    "MacBinary": b"\0\x07one.pdf" + bytes(56) + b"PDF CARO" + bytes(55),
    "a warning of PHP": b"<br />\n<b>Warning</b>: date() in <b>x.php</b><br />\n",
    "zeros": bytes(600),
    "text": b"Report of today\n",
    "text without a line's end": b"GARBAGE" * 9,
    "noise": bytes(range(90, 256)) * 4,
    "as much as there may be": b" " * 1019,
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_that_holds_pdfs_is_named_for_what_it_is(case: str) -> None:
    content, what = OTHERS[case]
    with pytest.raises(BadInput) as caught:
        sniff(io.BytesIO(content))
    assert caught.value.failure.code == "unsupported_type"
    assert what in caught.value.failure.message


def test_a_mailbox_is_a_mailbox(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a mail"):
        sniff(io.BytesIO(mbox(tmp_path)))


@pytest.mark.parametrize("case", JUNK)
def test_a_pdf_behind_junk_is_a_pdf(case: str) -> None:
    assert sniff(io.BytesIO(JUNK[case] + ONE_PAGE)) == PDF
