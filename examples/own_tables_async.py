"""The same for asyncio.

python own_tables_async.py [DATABASE_URL]
"""

from __future__ import annotations

import asyncio
import sys
import uuid

import agentdb
from agentdb import AsyncDb


async def main(url: str | None) -> None:
    async with agentdb.connect_async(url, apps=["conversations"], migrate=True) as db:
        from conversations import store

        session_id = str(uuid.uuid4())

        async def start(tx: AsyncDb) -> None:
            # A plain function runs in the transaction's thread, so the models' queries are part of the transaction.
            await tx.run_transaction(
                lambda inside: store.open_session(
                    inside, session_id, "support-bot", {"title": "Refund"}
                )
            )
            await tx.update_session_status(session_id, "active")

        await db.run_transaction(start)

        async def say(number: int) -> int:
            return await db.run_transaction(
                lambda tx: store.append_message(tx, session_id, "user", number)
            )

        # Ten at once: their numbers are 1 to 10.
        numbers = await asyncio.gather(*map(say, range(10)))
        print(
            sorted(numbers),
            len(
                await db.run_transaction(
                    lambda tx: store.messages_after(tx, session_id, 5)
                )
            ),
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
