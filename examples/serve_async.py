"""The same database from asyncio: twenty sessions opened at once.

python examples/serve_async.py [DATABASE_URL]
"""

from __future__ import annotations

import asyncio
import sys
import uuid

import agentdb
from agentdb import AsyncDb, SessionRecord, SessionStatus

AGENT = "async-bot"


async def open_session(db: AsyncDb) -> SessionRecord:
    session = await db.insert_session(str(uuid.uuid4()), AGENT, str(uuid.uuid4()))
    await db.update_session_status(session.id, SessionStatus.ACTIVE)
    return session


async def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else None
    async with agentdb.connect_async(url) as db:
        agent = await db.upsert_agent(AGENT, "/srv/agents/async")
        print(f"{agent.name} is at version {agent.version}.")

        opened = await asyncio.gather(*(open_session(db) for _ in range(20)))
        listed = await db.list_sessions(agent=AGENT)
        print(
            f"Opened {len(opened)} sessions at once; the database lists {len(listed)}."
        )

        ended = await asyncio.gather(
            *(db.update_session_status(s.id, SessionStatus.ENDED) for s in opened)
        )
        print(f"Ended {sum(ended)} of them.")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except agentdb.AgentDbError as error:
        sys.exit(str(error))
