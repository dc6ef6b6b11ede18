"""The catalogue's routes on a running ComfyUI: what a page needs of them."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hyper_sd.models.catalog import load_catalog
from hyper_sd.models.progress import Progress, Row, State
from hyper_sd.tests.nodes.model_world import CANCEL, ROUTES, START, STATUS, lora, until, weights


def test_list_has_every_entry_with_what_the_page_shows(world):
    name = world.offer("listed-lora", weights(3000))
    status, listing = world.ask(ROUTES)
    assert status == 200
    assert listing["families"]["flux"] == "FLUX.1-dev"
    assert listing["chinese"]["SDXL, one-step UNet"].endswith("一步 UNet")
    assert listing["problem"] == ""
    rows = {row["id"]: row for row in listing["entries"]}
    assert len(rows) > 58
    assert listing["families"][rows["reward-image-reward"]["family"]] == "Scores of pictures"
    assert rows["reward-image-reward"]["models"]["directory"] == "hyper_sd_rewards"
    assert rows["hyper-flux1-dev-8steps-lora"]["licence"]["acknowledge"] is True
    assert rows["listed-lora"]["models"]["name"] == name
    assert rows["listed-lora"]["state"] == "missing"


def test_started_file_is_there_and_offered_by_the_loader(world):
    content = lora(3)
    name = world.offer("started-lora", content)
    status, answer = world.ask(START, {"id": "started-lora"})
    assert status == 200
    assert answer["entry"]["id"] == "started-lora"
    assert world.when("started-lora", "ready")["file"] == name
    assert (world.loras / name).read_bytes() == content
    assert name in str(world.server.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"])


def test_scorers_file_goes_to_a_folder_of_its_own(world):
    world.offer_reward("scorer-words", b'{"model": {"vocab": {"a": 0}}}')
    assert world.ask(START, {"id": "scorer-words"})[0] == 200
    assert world.when("scorer-words", "ready")["file"] == "scorer-words.json"
    assert (world.base / "models" / "hyper_sd_rewards" / "scorer-words.json").is_file()


def test_unet_goes_to_the_folder_of_diffusion_models(world):
    name = world.offer("folder-unet", weights(3000, 1), kind="unet")
    world.ask(START, {"id": "folder-unet"})
    assert world.when("folder-unet", "ready")["file"] == name
    assert (world.base / "models" / "diffusion_models" / name).is_file()


def test_progress_comes_over_the_websocket(world):
    import aiohttp

    name = world.offer("watched-lora", weights(8_000_000))
    world.slow(name, 4_000_000)

    async def follow() -> list[dict]:
        rows = []
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{world.server.address}/ws") as socket:
            await asyncio.to_thread(world.ask, START, {"id": "watched-lora"})
            while not rows or rows[-1]["file"] != name:
                message = await socket.receive(timeout=60)
                event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {}
                if event.get("type") == "hyper_sd.download" and event["data"]["id"] == "watched-lora":
                    rows.append(event["data"])
        return rows

    rows = asyncio.run(follow())
    done = [row["bytes_done"] for row in rows if row["state"] == "downloading"]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert any(row["rate"] and row["eta_seconds"] is not None for row in rows)
    assert rows[-1]["state"] == "ready"


def test_cancelled_download_goes_on_where_it_stopped(world):
    name = world.offer("cancelled-lora", weights(3_000_000))
    world.slow(name, 1_000_000)
    world.ask(START, {"id": "cancelled-lora"})
    until(lambda: world.row("cancelled-lora")["bytes_done"] > 300_000)
    assert [row["id"] for row in world.ask(STATUS)[1]["active"]] == ["cancelled-lora"]
    assert world.ask(CANCEL, {"id": "cancelled-lora"})[0] == 200
    partial = world.when("cancelled-lora", "partial")
    assert partial["bytes_done"] > 300_000
    assert partial["problem"] == ""
    world.ask(START, {"id": "cancelled-lora"})
    world.when("cancelled-lora", "ready")
    ranges = [request.range for request in world.hub.requests if name in request.path and request.method == "GET"]
    assert ranges == [None, f"bytes={partial['bytes_done']}-"]


def test_second_start_finds_the_download_under_way(world):
    name = world.offer("twice-lora", weights(1_500_000))
    world.slow(name, 1_000_000)
    for _ in range(3):
        assert world.ask(START, {"id": "twice-lora"})[0] == 200
    world.when("twice-lora", "ready")
    assert sum(name in request.path and request.method == "GET" for request in world.hub.requests) == 1


def test_corrupt_file_is_kept_until_it_is_to_be_set_aside(world):
    name = world.offer("corrupt-lora", weights(3000, 2))
    (world.loras / name).write_bytes(b"something else")
    world.ask(START, {"id": "corrupt-lora"})
    row = until(lambda: (row := world.row("corrupt-lora"))["problem"].endswith(".") and row)
    assert row["state"] == "corrupt"
    assert "Have it set aside" in row["problem"]
    assert (world.loras / name).read_bytes() == b"something else"
    world.ask(START, {"id": "corrupt-lora", "set_aside": True})
    world.when("corrupt-lora", "ready")
    assert (world.loras / f"{name}.corrupt").read_bytes() == b"something else"


def test_same_content_under_another_name_counts_as_there(world):
    content = weights(3000, 3)
    world.offer("renamed-lora", content)
    (world.loras / "my favourite.safetensors").write_bytes(content)
    world.ask(START, {"id": "renamed-lora"})
    assert world.when("renamed-lora", "ready")["file"] == "my favourite.safetensors"


def test_licence_that_was_not_accepted_is_refused_until_it_is(world):
    name = world.offer("strict-route-lora", weights(3000, 4), family="flux", licence="strict")
    for fields in ({}, {"acknowledged": False}):
        status, answer = world.ask(START, {"id": "strict-route-lora"} | fields)
        assert status == 409
        assert "https://huggingface.co/tests/strict" in answer["error"]
    assert world.row("strict-route-lora")["state"] == "missing"
    assert world.ask(START, {"id": "strict-route-lora", "acknowledged": True})[0] == 200
    assert world.when("strict-route-lora", "ready")["file"] == name


def test_released_file_the_hub_does_not_have_leaves_a_sentence_and_no_file(world):
    world.ask(START, {"id": "hyper-sd15-2steps-lora"})
    row = until(lambda: (row := world.row("hyper-sd15-2steps-lora"))["problem"] and row)
    assert row["state"] == "missing"
    assert "Log in with" in row["problem"]
    assert not list(world.loras.glob("Hyper-SD15*.safetensors*.part"))
    assert not list(world.loras.glob("Hyper-SD15*.safetensors"))


def test_broken_own_catalogue_is_told_and_the_released_files_stay(world):
    world.offer("late-lora", weights(3000, 5))
    world.write_catalogue('{"entries": [{"id": "../x"}]}')
    listing = world.ask(ROUTES)[1]
    world.offer("later-lora", weights(3000, 6))
    assert "entry 1" in listing["problem"]
    assert len(listing["entries"]) == 58
    assert world.ask(ROUTES)[1]["problem"] == ""


def test_own_page_is_served(world):
    own = {"Origin": world.server.address, "Sec-Fetch-Site": "same-origin"}
    assert world.ask(ROUTES, headers=own)[0] == 200
    assert world.ask(CANCEL, {"id": "hyper-sd15-1step-lora"}, headers=own)[0] == 200
    assert world.ask(ROUTES, headers={"Sec-Fetch-Site": "none"})[0] == 200


def test_two_hundred_lists_at_once_are_all_answered(world):
    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(lambda _: world.ask(ROUTES), range(200)))
    assert {status for status, _ in answers} == {200}
    assert all(answer == answers[0][1] for _, answer in answers)


def test_log_shows_no_traceback_of_the_routes(world):
    log = world.server.log.read_text(encoding="utf-8", errors="replace")
    assert "model_routes.py" not in log
    assert "Error handling request" not in log


@pytest.fixture
def routes(host):
    """(the routes over a stand-in whose looks and starts wait for `go`, the stand-in)"""
    from hyper_sd.nodes.model_routes import ModelRoutes

    class Waiting(SimpleNamespace):
        def catalog(self):
            return (), ""

        def rows(self):
            self.looks += 1
            self.go.wait(60)
            return [Row(self.entry, Progress(State.PARTIAL, self.looks))]

        def cancel(self, entry_id):
            self.go.wait(60)
            return Row(self.entry, Progress(State.MISSING))

    downloads = Waiting(looks=0, go=threading.Event(), entry=load_catalog().get("hyper-sd15-1step-lora"))
    return ModelRoutes(downloads), downloads


def test_requests_share_one_look_at_the_folders(routes):
    served, downloads = routes

    async def ask() -> list:
        waiting = [asyncio.ensure_future(served.list(None)) for _ in range(200)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # one that hangs up takes nothing from the others
        downloads.go.set()
        first = await asyncio.gather(*waiting[1:])
        return [first, await served.list(None)]

    first, later = asyncio.run(ask())
    assert [entry["bytes_done"] for answer in first for entry in answer["entries"]] == [1] * 199
    assert [entry["bytes_done"] for entry in later["entries"]] == [2]


def test_calls_beyond_the_bound_are_refused_until_others_have_ended(routes):
    from hyper_sd.nodes.model_routes import CALLS_AT_ONCE, Refused

    served, downloads = routes

    class Body(SimpleNamespace):
        content_type = "application/json"

        @property
        def content(self):
            async def pieces(size):
                yield b'{"id": "x"}'

            return SimpleNamespace(iter_chunked=pieces)

    async def ask() -> list:
        waiting = [asyncio.ensure_future(served.cancel(Body())) for _ in range(CALLS_AT_ONCE + 5)]
        while not any(call.done() for call in waiting):
            await asyncio.sleep(0)
        downloads.go.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        return [*outcomes, await served.cancel(Body())]

    *outcomes, later = asyncio.run(ask())
    refused = [error for error in outcomes if isinstance(error, Refused)]
    assert len(refused) == 5
    assert {error.status for error in refused} == {429}
    assert later["entry"]["id"] == "hyper-sd15-1step-lora"


def test_routes_are_added_once_when_two_copies_of_the_pack_register(host, routes, monkeypatch):
    from server import PromptServer, web

    table = web.RouteTableDef()
    monkeypatch.setattr(PromptServer, "instance", SimpleNamespace(routes=table), raising=False)
    routes[0].register()
    routes[0].register()
    paths = sorted((route.method, route.path) for route in table)
    assert paths == [("GET", ROUTES), ("GET", STATUS), ("POST", CANCEL), ("POST", START)]
