"""An agent server's API: the tenant comes from an API key, and a probe asks the database.

DATABASE_URL=sqlite:///agents.sqlite3 uvicorn fastapi_app:app
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response

import agentdb
from agentdb import AsyncDb


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Opened with the server; closed with it, once the calls under way have ended.
    async with agentdb.connect_async(migrate=True) as db:
        app.state.db = db
        yield


app = FastAPI(lifespan=lifespan)


async def tenant_db(request: Request, x_api_key: Annotated[str, Header()] = "") -> AsyncDb:
    db: AsyncDb = request.app.state.db
    key = await db.authenticate(x_api_key) if x_api_key else None
    if key is None:
        raise HTTPException(401, "Unknown API key")
    return db.for_tenant(key.tenant_id)


TenantDb = Annotated[AsyncDb, Depends(tenant_db)]


@app.exception_handler(agentdb.DatabaseUnavailableError)
async def unavailable(request: Request, error: agentdb.DatabaseUnavailableError) -> Response:
    return Response("The database is away; try again.", status_code=503, headers={"Retry-After": "5"})


@app.put("/agents/{name}")
async def deploy(name: str, path: str, db: TenantDb) -> dict[str, Any]:
    return asdict(await db.upsert_agent(name, path))


@app.post("/agents/{name}/sessions", status_code=201)
async def open_session(name: str, db: TenantDb) -> dict[str, Any]:
    if await db.get_agent(name) is None:
        raise HTTPException(404, f"There is no agent {name!r}")
    return asdict(await db.insert_session(str(uuid.uuid4()), name, str(uuid.uuid4())))


@app.get("/sessions")
async def sessions(db: TenantDb, limit: int = 50) -> list[dict[str, Any]]:
    return [asdict(session) for session in await db.list_sessions(limit=limit)]


@app.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    found = await request.app.state.db.health()
    response.status_code = 200 if found.ok else 503
    return {"ok": found.ok, "reason": found.reason}
