"""What every log line contains, and what none contains."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import warnings

import pytest
import structlog

from dicom_node.log import configure_logging


@pytest.fixture
def lines():
    """The lines logged so far, as parsed JSON; logging is restored afterwards."""
    root, file = logging.getLogger(), io.StringIO()
    handlers, level, show = root.handlers, root.level, warnings.showwarning
    configure_logging("work", file)
    yield lambda: [json.loads(line) for line in file.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def in_a_thread(call) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_log_line_of_any_thread_names_its_process(lines):
    log = structlog.get_logger()
    log.info("here")
    in_a_thread(lambda: log.info("there", process="another"))
    in_a_thread(lambda: logging.getLogger("library").warning("text"))
    assert [(line["event"], line["process"]) for line in lines()] == [
        ("here", "work"),
        ("there", "work"),
        ("library.warning", "work"),
    ]


def warn_of_each(images: int) -> None:
    for image in range(images):
        logging.getLogger("pydicom").warning("Invalid value in image %d", image)


@pytest.mark.filterwarnings("always:Invalid value:UserWarning")
def test_a_place_in_a_library_warns_once_but_each_error_of_one_is_logged(lines):
    warn_of_each(3)
    logging.getLogger("pydicom").warning("another place")
    for _ in range(2):
        logging.getLogger("pydicom").error("a fault")
    assert [line["level_name"] for line in lines()] == ["WARNING", "WARNING", "ERROR", "ERROR"]
    assert len({line["source"] for line in lines()}) == 3


@pytest.mark.filterwarnings("always:Invalid value:UserWarning")
def test_patient_attributes_and_texts_of_libraries_and_exceptions_are_omitted(lines):
    log = structlog.get_logger()
    log.info("job", job=1, patient_name="Doe^Jane", patient_id="4711")
    logging.getLogger("pydicom").warning("Invalid value for VR PN: %r", "Doe^Jane")
    warnings.warn("Invalid value 4711", stacklevel=1)
    try:
        int("Doe^Jane")
    except ValueError:
        log.exception("job.crashed")
    text = json.dumps(lines())
    assert [line["event"] for line in lines()] == ["job", "library.warning", "library.warning", "job.crashed"]
    assert "Doe" not in text
    assert "4711" not in text
    assert lines()[1]["logger"] == "pydicom"
    assert lines()[3]["exception"].startswith("ValueError at ")


def test_lines_that_cannot_be_written_end_nothing(lines):
    reading, without_reader = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor, why in ((full, "No space left"), (without_reader, "Broken pipe")):
        with pytest.raises(OSError, match=why):
            os.write(descriptor, b"a line")
        with io.TextIOWrapper(io.FileIO(descriptor, "w"), write_through=True) as file:
            configure_logging("listen", file)
            log = structlog.get_logger()
            for level in ("debug", "info", "warning", "error", "critical"):
                getattr(log, level)("association.rejected")
            try:
                int("x")
            except ValueError:
                log.exception("association.crashed")
