"""HTTP in, one service call, HTTP out: docker's Engine API. The only folder of the engine that knows aiohttp.web."""
