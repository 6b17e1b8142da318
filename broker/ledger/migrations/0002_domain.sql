-- Projections of the events, each rebuildable from them, and the guards that ride on their own rows. Times are ledger
-- times in milliseconds; positions are leaf indexes.

-- Single-use proofs, by their replay marks. A row here means spent.
CREATE TABLE proofs (
  mark    BLOB PRIMARY KEY,
  expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX proofs_by_expiry ON proofs (expires);

-- Explicit tasks. An implicit one-shot task lives inside its `issued` event and has no row.
CREATE TABLE tasks (
  id             TEXT PRIMARY KEY,
  agent          TEXT NOT NULL,
  state          TEXT NOT NULL,
  opened_seq     INTEGER NOT NULL,
  opened         INTEGER NOT NULL,
  deadline       INTEGER NOT NULL,
  heartbeat_ms   INTEGER,
  last_heartbeat INTEGER,
  due            INTEGER NOT NULL,          -- the earlier of the deadline and the next missing heartbeat
  parent         TEXT,
  trigger        TEXT NOT NULL,
  last_expiry    INTEGER NOT NULL DEFAULT 0, -- of what was issued under it: ends enter the feed only while later than now
  ended_seq      INTEGER,
  ended          INTEGER,
  end_reason     TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX tasks_due ON tasks (due) WHERE state = 'active';
CREATE INDEX tasks_by_agent ON tasks (agent, state);
CREATE INDEX tasks_by_parent ON tasks (parent) WHERE parent IS NOT NULL;

-- Which events tell the story of an explicit task.
CREATE TABLE task_events (
  task TEXT NOT NULL,
  seq  INTEGER NOT NULL,
  PRIMARY KEY (task, seq)
) STRICT, WITHOUT ROWID;

-- One row per credential, its key the position of its `issued` event. Live, expired or dead is derived, never stored,
-- so that a kill writes one row however many credentials it ends.
CREATE TABLE grants (
  seq      INTEGER PRIMARY KEY,
  task     TEXT NOT NULL,
  agent    TEXT NOT NULL,
  resource TEXT NOT NULL,
  audience TEXT NOT NULL,
  kid      TEXT NOT NULL,
  expires  INTEGER NOT NULL
) STRICT;

-- Kills by operators and the endings of tasks that left unexpired credentials: what the feed carries.
CREATE TABLE kills (
  seq      INTEGER PRIMARY KEY,
  id       TEXT NOT NULL,
  target   TEXT NOT NULL,
  value    TEXT NOT NULL,
  at       INTEGER NOT NULL,
  actor    TEXT NOT NULL,
  reason   TEXT NOT NULL,
  hold     TEXT,                 -- the hold placed with it
  tasks    INTEGER NOT NULL,     -- open tasks that it ended
  floor    INTEGER NOT NULL      -- of the ledger then: no credential below it was alive
) STRICT;
CREATE TABLE kill_matches (
  seq   INTEGER NOT NULL,
  kind  TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (seq, kind, value)
) STRICT, WITHOUT ROWID;
CREATE INDEX kill_matches_by_value ON kill_matches (kind, value, seq);

-- Verifier instances that were in contact when the kill was committed, and when each reported it applied.
CREATE TABLE kill_expected (
  seq      INTEGER NOT NULL,
  instance TEXT NOT NULL,
  verifier TEXT NOT NULL,
  mode     TEXT NOT NULL,
  bound_ms INTEGER NOT NULL,
  leeway_ms INTEGER NOT NULL,
  acked_ms INTEGER,              -- after the commit; NULL while missing
  acked_seq INTEGER,
  PRIMARY KEY (seq, instance)
) STRICT, WITHOUT ROWID;

CREATE TABLE holds (
  id         TEXT PRIMARY KEY,
  target     TEXT NOT NULL,
  value      TEXT NOT NULL,
  placed_seq INTEGER NOT NULL,
  placed     INTEGER NOT NULL,
  actor      TEXT NOT NULL,
  reason     TEXT NOT NULL,
  lifted_seq INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX holds_standing ON holds (target, value) WHERE lifted_seq IS NULL;

-- Running verifier processes.
CREATE TABLE instances (
  instance     TEXT PRIMARY KEY,
  verifier     TEXT NOT NULL,
  audiences    TEXT NOT NULL,    -- JSON array
  mode         TEXT NOT NULL,
  bound_ms     INTEGER NOT NULL,
  leeway_ms    INTEGER NOT NULL,
  registered_seq INTEGER NOT NULL,
  last_contact INTEGER NOT NULL,
  position     INTEGER NOT NULL  -- the last position it reported applied
) STRICT, WITHOUT ROWID;

-- Requests that wait for a human, one per exact request (RFC 8785 digest).
CREATE TABLE approvals (
  id        TEXT PRIMARY KEY,
  digest    TEXT NOT NULL,
  agent     TEXT NOT NULL,
  task      TEXT,
  state     TEXT NOT NULL,
  requested_seq INTEGER NOT NULL,
  requested INTEGER NOT NULL,
  expires   INTEGER NOT NULL,
  request   TEXT NOT NULL,       -- JSON: the bytes that the digest covers
  gates     TEXT NOT NULL        -- JSON
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX approvals_pending ON approvals (digest) WHERE state = 'pending';

-- Signing keys. Private parts are sealed (AES-256-GCM) under a key that is not in this file.
CREATE TABLE keys (
  kid       TEXT PRIMARY KEY,
  purpose   TEXT NOT NULL,       -- token | session
  state     TEXT NOT NULL,       -- next | active | retired | killed
  jwk       TEXT NOT NULL,       -- public, JSON
  sealed    BLOB NOT NULL,
  published INTEGER NOT NULL,
  activated INTEGER,
  retired   INTEGER
) STRICT, WITHOUT ROWID;
