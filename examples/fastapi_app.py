"""An agent server's API: an API key names the tenant, and a repeated request does nothing twice.

export DATABASE_URL=sqlite:///agents.sqlite3
agentdb migrate
agentdb apikey issue --tenant acme --label first        (prints the key, once)
uvicorn fastapi_app:app
curl -X PUT -H "X-Api-Key: $KEY" "localhost:8000/agents/support-bot?path=/srv/agents/support"
curl -X PUT -H "X-Api-Key: $KEY" localhost:8000/agents/support-bot/sessions/$(uuidgen)
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Request,
    Response,
)
from fastapi.responses import JSONResponse

import agentdb
from agentdb import AsyncDb, SessionRecord

router = APIRouter()


async def tenant_db(
    request: Request, x_api_key: Annotated[str, Header()] = ""
) -> AsyncDb:
    db: AsyncDb = request.app.state.db
    key = await db.authenticate(x_api_key) if x_api_key else None
    if key is None:
        raise HTTPException(401, "Send a valid API key in the header X-Api-Key.")
    return db.for_tenant(key.tenant_id)


TenantDb = Annotated[AsyncDb, Depends(tenant_db)]


@router.put("/agents/{name}")
async def deploy(name: str, path: str, db: TenantDb) -> dict[str, Any]:
    return asdict(await db.upsert_agent(name, path))


@router.put("/agents/{name}/sessions/{id}", status_code=201)
async def open_session(
    name: str, id: str, db: TenantDb, response: Response
) -> dict[str, Any]:
    """Open the session under the client's id, a random UUID; 200 if an earlier request stored it."""
    if await db.get_agent(name) is None:
        raise HTTPException(404, f"There is no agent {name!r}.")
    try:
        session: SessionRecord | None = await db.insert_session(
            id, name, str(uuid.uuid4())
        )
    except agentdb.DuplicateKeyError:
        session = await db.get_session(id)
        response.status_code = 200
    if session is None or session.agent_name != name:
        raise HTTPException(409, f"The id {id!r} is taken. Choose another.")
    return asdict(session)


@router.get("/sessions")
async def sessions(
    db: TenantDb, limit: int = 50, before: str | None = None
) -> dict[str, Any]:
    found = await db.list_sessions(limit=limit, before=before)
    more = len(found) == limit
    return {
        "sessions": [asdict(session) for session in found],
        "before": found[-1].cursor if more else None,
    }


@router.get("/health")
async def health(request: Request, response: Response) -> dict[str, Any]:
    found = await request.app.state.db.health()
    response.status_code = 200 if found.ok else 503
    return {"ok": found.ok, "reason": found.reason}


def answer(status: int, error: str, **headers: str) -> JSONResponse:
    return JSONResponse({"detail": error}, status, headers)


async def bad_input(request: Request, error: Exception) -> JSONResponse:
    return answer(422, str(error))


async def nothing_stored(request: Request, error: Exception) -> JSONResponse:
    return answer(
        503, "Nothing was stored; send the request again.", **{"Retry-After": "5"}
    )


async def outcome_unknown(request: Request, error: Exception) -> JSONResponse:
    return answer(
        504, "It may be stored. Send the same request again, with the same id."
    )


def create_app(open_db: Callable[[], AsyncDb]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Opens with the server, and closes with it when the running calls have ended.
        async with open_db() as app.state.db:
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(agentdb.InvalidInputError, bad_input)
    app.add_exception_handler(agentdb.ConflictError, nothing_stored)
    app.add_exception_handler(agentdb.DatabaseUnavailableError, nothing_stored)
    # FastAPI picks the handler of the most specific class.
    app.add_exception_handler(agentdb.OutcomeUnknownError, outcome_unknown)
    return app


app = create_app(agentdb.connect_async)
