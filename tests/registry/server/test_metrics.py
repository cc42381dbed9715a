from .conftest import Start


async def test_answers_are_counted_by_kind(start: Start) -> None:
    client = await start(debug_address="127.0.0.1:0", metrics_path="/m")
    await client.push_image("a", "v1")
    await client.call("GET", "/v2/a/manifests/v1")
    await client.call("GET", "/v2/a/manifests/none")
    host, port = client.server.addresses()[1]
    answer = await client.call("GET", f"http://{host}:{port}/m")
    text = answer.body.decode()
    assert 'registry_http_requests_total{handler="manifest",method="get",code="200"} 1' in text
    assert 'registry_http_requests_total{handler="manifest",method="get",code="404"} 1' in text
    assert 'registry_http_request_duration_seconds_bucket{handler="manifest",le="+Inf"} 3' in text
    assert 'registry_notifications_events_total{action="push"} 3' in text
    assert (await client.call("GET", f"http://{host}:{port}/debug/health")).json == {}
    assert (await client.call("GET", f"http://{host}:{port}/v2/")).status == 404
