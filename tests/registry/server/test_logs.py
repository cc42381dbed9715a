import json
import logging

import pytest

from registry.server.logs import set_up_logging

from .conftest import Start


@pytest.mark.parametrize("form", ["text", "json"])
async def test_one_line_per_answer_that_clients_cannot_forge(
    start: Start, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    caplog.set_level(logging.INFO, "berth.registry.access")
    logging.getLogger("berth.registry.access").propagate = True
    client = await start(access_log=True, log_format=form)
    await client.call("GET", "/v2/a/manifests/x", headers={"User-Agent": 'evil" 200 1 "fake'})
    lines = [record.getMessage() for record in caplog.records if record.name == "berth.registry.access"]
    assert len(lines) == 1 and "\n" not in lines[0]
    if form == "json":
        assert json.loads(lines[0])["status"] == 404
    else:
        assert '"GET /v2/a/manifests/x HTTP/1.1" 404 ' in lines[0] and 'evil\\" 200' in lines[0]


@pytest.mark.parametrize("form", ["text", "json"])
def test_fields_stand_in_every_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("info", form, {"service": 'the "one"'})
        logging.getLogger("berth.registry").info("hello")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("berth.registry.access").handlers[:] = []
    line = capsys.readouterr().err
    if form == "json":
        entry = json.loads(line)
        assert (entry["service"], entry["msg"]) == ('the "one"', "hello")
    else:
        assert line.rstrip().endswith('msg="hello" service="the \\"one\\""')
