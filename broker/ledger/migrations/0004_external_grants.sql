-- Credentials that live at a backend: one row per grant, its key the position of its `issuing` event. Unlike a token,
-- such a credential must be ended by hand, so its state is stored, and what is still to be done with it.
CREATE TABLE external_grants (
  seq       INTEGER PRIMARY KEY,
  task      TEXT NOT NULL,
  agent     TEXT NOT NULL,
  resource  TEXT NOT NULL,
  audience  TEXT NOT NULL,
  issuer    TEXT NOT NULL,
  ending    TEXT NOT NULL,               -- revocable | expires-only
  state     TEXT NOT NULL,               -- issuing | live | revoking | stuck | revoked | expired | failed
  handle    TEXT NOT NULL DEFAULT '{}',  -- JSON: what finds it at the backend; '{}': nothing can be there
  expires   INTEGER NOT NULL,
  settles   INTEGER NOT NULL,            -- until then a call of ours may still be making it: its absence proves nothing
  ended_seq INTEGER,                     -- the event that ended it: a kill, its task's end, a failure
  over      INTEGER NOT NULL,            -- 1: nothing more will be issued under its task
  closed    INTEGER NOT NULL DEFAULT 0,  -- 1: what was opened at the backend for its task is closed
  tries     INTEGER NOT NULL DEFAULT 0,
  next_try  INTEGER,                     -- when somebody must look at it; NULL: never again
  gone_seq  INTEGER,
  gone      INTEGER,                     -- when the backend was seen without it
  note      TEXT,                        -- what the backend said beside that
  problem   TEXT                         -- why the last try failed
) STRICT;
CREATE INDEX external_grants_due ON external_grants (issuer, next_try) WHERE next_try IS NOT NULL;
CREATE INDEX external_grants_by_task ON external_grants (task);
CREATE INDEX external_grants_there ON external_grants (agent) WHERE gone IS NULL;
