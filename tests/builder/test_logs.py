import logging
import threading

import pytest

from tests.doubles import make
from trtsparse.builder.logs import Log, collecting, logger_for


@pytest.fixture(params=["8.6.1", "10.13.3", "rtx-1.7.1"])
def trt(request):
    return make(request.param)


def test_there_is_one_logger_a_module(trt):
    assert logger_for(trt) is logger_for(trt)
    assert isinstance(logger_for(trt), trt.ILogger)


def test_messages_go_to_the_operation_that_runs(trt):
    with collecting(trt) as (logger, first):
        logger.log(trt.ILogger.Severity.ERROR, "one")
    with collecting(trt) as (logger, second):
        logger.log(trt.ILogger.Severity.WARNING, "two")
        logger.log(trt.ILogger.Severity.INFO, "three")
    assert first.messages == [("ERROR", "one")]
    assert second.messages == [("WARNING", "two"), ("INFO", "three")]
    assert (first.errors, second.warnings) == (("one",), ("two",))


def test_of_the_verbose_messages_only_those_about_sparsity_are_kept(trt):
    with collecting(trt) as (logger, log):
        logger.log(trt.ILogger.Severity.VERBOSE, "Parsing node")
        logger.log(trt.ILogger.Severity.VERBOSE, "(Sparsity) Chose 0 layer(s) using sparse tactics")
    assert [text for _, text in log.messages] == ["(Sparsity) Chose 0 layer(s) using sparse tactics"]


def test_outside_of_operations_problems_go_to_pythons_logging(trt, caplog):
    with caplog.at_level(logging.DEBUG, "trtsparse.tensorrt"):
        logger_for(trt).log(trt.ILogger.Severity.ERROR, "late")
        logger_for(trt).log(trt.ILogger.Severity.INFO, "chatter")
    assert [(r.levelname, r.message) for r in caplog.records] == [("ERROR", "late")]


def test_threads_do_not_mix_their_messages(trt):
    found = {}

    def work(name):
        with collecting(trt) as (logger, log):
            for _ in range(200):
                logger.log(trt.ILogger.Severity.INFO, name)
            found[name] = {text for _, text in log.messages}

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {str(n): {str(n)} for n in range(4)}


def test_repeated_texts_are_listed_once():
    log = Log([("ERROR", "a "), ("INTERNAL_ERROR", "b"), ("ERROR", "a"), ("INFO", "c")])
    assert log.errors == ("a", "b")
    assert log.since(2).messages == [("ERROR", "a"), ("INFO", "c")]
