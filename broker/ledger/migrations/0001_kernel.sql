-- The log itself. What is hashed is `bytes`; everything else in this file can be recomputed from it, and `taskpass ledger
-- verify` does. Times are ledger times in milliseconds; positions are leaf indexes of the Merkle tree (RFC 9162).

-- The one row that writers take turns on.
CREATE TABLE head (
  one              INTEGER PRIMARY KEY CHECK (one = 1),
  epoch            TEXT NOT NULL,
  size             INTEGER NOT NULL,
  time             INTEGER NOT NULL,
  frontier         BLOB NOT NULL,          -- roots of the complete subtrees, leftmost first, joined
  guard_version    INTEGER NOT NULL,
  registry_hash    TEXT NOT NULL,
  policy_hash      TEXT NOT NULL,
  active_kid       TEXT NOT NULL,
  issuance_stopped TEXT NOT NULL,          -- the reason, empty while issuing
  floor            INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
  seq   INTEGER PRIMARY KEY,
  bytes BLOB NOT NULL,
  leaf  BLOB NOT NULL                      -- sha256(0x00 || bytes)
) STRICT;

-- Hashes of complete subtrees in groups of 256: at level L each covers 256^L events. Level 0 has only full tiles, the
-- part of the last one is in `events`; a higher level's last tile grows.
CREATE TABLE tiles (
  level  INTEGER NOT NULL,
  idx    INTEGER NOT NULL,
  hashes BLOB NOT NULL,
  PRIMARY KEY (level, idx)
) STRICT;

-- Signed tree heads (C2SP tlog-checkpoint).
CREATE TABLE checkpoints (
  size INTEGER PRIMARY KEY,
  at   INTEGER NOT NULL,
  note TEXT NOT NULL
) STRICT;

-- Personal text, erasable. `ref` is `<id>/<field>`: the event at that id's position names the id and holds, in that
-- field, hex sha256(salt || text), so proofs survive the erasure.
CREATE TABLE texts (
  ref  TEXT PRIMARY KEY,
  salt BLOB NOT NULL,
  text TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Registries and policy bundles as they were loaded, under the hash that the head and the events name.
CREATE TABLE bundles (
  hash    TEXT PRIMARY KEY,
  kind    TEXT NOT NULL,
  content BLOB NOT NULL
) STRICT, WITHOUT ROWID;
