"""Whatever a file brings a decoder to raise becomes that file's rows: exceptions of any kind, at any call."""

import logging
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from PIL import Image

import pipeline.native
from pipeline.decode import read_unit
from pipeline.documents import DocumentOptions
from pipeline.native import inspect_asset, read_asset_pieces
from pipeline.records import MESSAGE_CHARACTERS, Asset, BadInput, ErrorCode, Failure, Unit
from pipeline.store import Store, StoreOptions
from tests.decoding import decode_options
from tests.fakes import EXCEPTIONS, RaisingSandbox
from tests.pipeline.document_files import PdfPage, pdf_bytes, text
from tests.pipeline.video_files import options as video_options
from tests.pipeline.video_files import write_lights

DECODERS = ("documents", "pdf", "images", "pixels", "videos", "video_file", "video_frames", "video_color", "shot_cuts")
TRIES = 40  # calls that are made to fail, evenly spread over all there are


def pdf(folder: Path) -> Asset:
    (folder / "a.pdf").write_bytes(pdf_bytes([PdfPage(content=text(f"page {n}", 100, 600)) for n in (1, 2)]))
    return Store().stat(str(folder / "a.pdf"))


def image(folder: Path) -> Asset:
    Image.new("RGB", (120, 90), "white").save(folder / "a.tif")
    return Store().stat(str(folder / "a.tif"))


def video(folder: Path) -> Asset:
    write_lights(folder / "a.mp4", 4, [(1.0, 2.0)])
    return Store().stat(str(folder / "a.mp4"))


MEDIA = {pdf: DocumentOptions(), image: DocumentOptions(), video: video_options()}


@contextmanager
def failing_call(number: int, error: BaseException):
    """The `number`-th call of a function of the decoders raises `error`; yields the calls that were counted."""
    calls = [0]
    files = {f"pipeline/{name}.py" for name in DECODERS}

    def watch(frame, event, _):
        if event == "call" and "/".join(frame.f_code.co_filename.split("/")[-2:]) in files:
            calls[0] += 1
            if calls[0] == number:
                raise error

    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def surveyed(asset, media):
    pipeline.native._video_info.cache_clear()
    return inspect_asset(asset, StoreOptions(), media)


def read(asset, media):
    pipeline.native._video_info.cache_clear()
    return list(read_asset_pieces(asset, [1], StoreOptions(), media))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files closed by a failing call
@pytest.mark.parametrize("entry", [surveyed, read])
@pytest.mark.parametrize("make", MEDIA)
def test_an_exception_at_any_call_of_a_decoder_is_bad_input(tmp_path, make, entry):
    asset, media = make(tmp_path), MEDIA[make]
    with failing_call(0, ValueError()) as calls:
        entry(asset, media)
    total = calls[0]
    assert total > 5
    failed = []
    for step in range(TRIES):
        error = EXCEPTIONS[step % len(EXCEPTIONS)]
        with failing_call(1 + step * total // TRIES, error):
            try:
                result = entry(asset, media)
            except BadInput as bad:
                failed.append(bad.failure)
            else:  # a page's own failure, or a call that nothing depends on
                failures = [item[1] for item in result if isinstance(item, tuple)] if entry is read else []
                assert all(isinstance(failure, Failure) for failure in failures)
    assert ErrorCode.DECODER_ERROR in {failure.code for failure in failed}
    assert all(len(failure.message) <= MESSAGE_CHARACTERS for failure in failed)


@pytest.mark.parametrize("number", range(len(EXCEPTIONS)), ids=lambda number: type(EXCEPTIONS[number]).__name__)
def test_its_type_and_text_stand_in_the_row_and_its_stack_in_the_log(tmp_path, caplog, number):
    """Through a real child: no two pages fail by one exception, and each has its own reason."""
    asset = pdf(tmp_path)
    unit = Unit(asset.asset_id, asset.uri, asset.size, asset.etag, 1, 2, 1)
    options = decode_options(DocumentOptions(), memory_bytes=2**30, seconds=60)
    with closing(RaisingSandbox(number)) as sandbox, caplog.at_level(logging.WARNING):
        results = list(read_unit(sandbox, unit, options))
    assert [page_no for page_no, _ in results] == [1, 2]
    assert {failure.code for _, failure in results} == {ErrorCode.DECODER_ERROR}
    assert results[0][1].message.startswith(type(EXCEPTIONS[number]).__name__)
    assert all(failure.message.encode() for _, failure in results)  # as the tables hold it
    assert "raise_one" in caplog.text
    assert caplog.text.encode()  # as a terminal and a log file want it
    assert asset.uri in caplog.text
