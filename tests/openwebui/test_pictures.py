"""Pictures in Open WebUI, by a service that sleeps until somebody wants one."""

from __future__ import annotations

import asyncio

from comfyui_client import color_of

COLOR = 0x336699  # of the workflow `empty`


def test_a_person_gets_a_picture(cluster, person):
    made = person.post("/api/v1/images/generations", json={"prompt": "a blue square"})
    answer = person.client.get(made[0]["url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert color_of(answer.content) == COLOR


def test_many_people_get_their_pictures_at_once(cluster, person):
    async def scenario():
        ask = lambda: person.post("/api/v1/images/generations", json={"prompt": "a blue square"})  # noqa: E731
        return await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(8)))

    with cluster.service_as("draw", min=2, max=2, opportunistic=0):
        cluster.until(lambda: cluster.service("draw")["replicas_ready"] == 2, "two instances")
        urls = [made[0]["url"] for made in asyncio.run(scenario())]
    assert len(set(urls)) == 8
    assert {color_of(person.client.get(url).content) for url in urls} == {COLOR}
