// The tables, and how an older file becomes a newer one. proto/LEDGER.md describes the same tables
// for people; the names here are the ones that appear there. Every amount is an INTEGER; every
// instant is milliseconds since 1970; an operation id is its 16 bytes, big-endian, so that the
// primary key grows with time and inserts land at the end of the tree.

internal import GRDB

enum Schema {
  static var migrator: DatabaseMigrator {
    var migrator = DatabaseMigrator()
    migrator.registerMigration("1-books") { db in
      try db.execute(sql: positions)
      try db.execute(sql: books)
      try db.execute(sql: records)
    }
    migrator.registerMigration("2-prune") { db in
      // Finds what may be dropped without reading every counter. Long windows are not in it.
      try db.execute(
        sql: """
          CREATE INDEX cells_by_end ON cells (period_end)
          WHERE rtrim(window, '^') NOT IN ('M', 'Q', 'Y', 'L')
          """)
    }
    migrator.registerMigration("3-acknowledged-losses") { db in
      try db.execute(
        sql: """
          CREATE TABLE \(acknowledged) (
            bucket INTEGER NOT NULL, epoch INTEGER NOT NULL, first INTEGER NOT NULL,
            time INTEGER NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL,
            PRIMARY KEY (bucket, epoch, first)
          ) STRICT, WITHOUT ROWID
          """)
    }
    migrator.registerMigration("4-ids-by-bucket") { db in
      // An id is known within its account's bucket: the same one used for an account of another
      // bucket is another operation, and is billed too.
      try db.execute(sql: idsByBucket)
    }
    migrator.registerMigration("5-anchored-windows") { db in
      // The codes of anchored windows end in `@`: an anchored month is kept like any month.
      try db.execute(
        sql: """
          DROP INDEX cells_by_end;
          CREATE INDEX cells_by_end ON cells (period_end) WHERE \(isShort)
          """)
    }
    migrator.registerMigration("6-parts") { db in
      try db.execute(sql: parts)
      try Terms.noteAll(db)
    }
    migrator.registerMigration("7-closings") { db in try db.execute(sql: closings) }
    return migrator
  }

  /// What is closed, and in which period each line of the books is billed: its own, or, where that
  /// was closed when it came, the one that was open. What an older release posted as adjustments
  /// stays where it stood.
  private static let closings = """
    CREATE TABLE closings (
      account TEXT NOT NULL, month_start INTEGER NOT NULL, month_end INTEGER NOT NULL,
      time INTEGER NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL,
      PRIMARY KEY (account, month_start)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE new_series (
      id INTEGER PRIMARY KEY,
      account TEXT NOT NULL, feature TEXT NOT NULL,
      period_start INTEGER NOT NULL, period_end INTEGER NOT NULL, adjustment INTEGER NOT NULL,
      actual INTEGER NOT NULL, charged INTEGER NOT NULL, absorbed INTEGER NOT NULL,
      deltas INTEGER NOT NULL, billed_start INTEGER NOT NULL, billed_end INTEGER NOT NULL,
      UNIQUE (account, feature, period_start, adjustment, billed_start)
    ) STRICT;
    INSERT INTO new_series SELECT *, period_start, period_end FROM series;
    DROP TABLE series;
    ALTER TABLE new_series RENAME TO series;
    CREATE INDEX adjustments_by_period ON series (account, billed_start) WHERE adjustment = 1;
    """

  /// Counters that earlier releases dropped after their period, by their code.
  private static let isShort = "rtrim(window, '^@') NOT IN ('M', 'Q', 'Y', 'L')"

  private static let idsByBucket = """
    CREATE TABLE new_deltas (
      op BLOB NOT NULL, idx INTEGER NOT NULL,
      bucket INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
      kind INTEGER NOT NULL, time INTEGER NOT NULL,
      actual INTEGER NOT NULL, charged INTEGER NOT NULL, absorbed INTEGER NOT NULL,
      series INTEGER, body BLOB NOT NULL,
      PRIMARY KEY (op, idx, bucket)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_deltas SELECT * FROM deltas;
    CREATE TABLE new_postings (
      op BLOB NOT NULL, idx INTEGER NOT NULL, bucket INTEGER NOT NULL, account INTEGER NOT NULL,
      amount INTEGER NOT NULL,
      PRIMARY KEY (op, idx, bucket, account)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_postings SELECT p.op, p.idx, d.bucket, p.account, p.amount
      FROM postings AS p JOIN deltas AS d ON d.op = p.op AND d.idx = p.idx;
    CREATE TABLE new_parked (
      op BLOB NOT NULL, idx INTEGER NOT NULL, bucket INTEGER NOT NULL, reason TEXT NOT NULL,
      time INTEGER NOT NULL, replayed INTEGER,
      PRIMARY KEY (op, idx, bucket)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO new_parked SELECT p.op, p.idx, d.bucket, p.reason, p.time, p.replayed
      FROM parked AS p JOIN deltas AS d ON d.op = p.op AND d.idx = p.idx;
    DROP TABLE deltas;
    DROP TABLE postings;
    DROP TABLE parked;
    ALTER TABLE new_deltas RENAME TO deltas;
    ALTER TABLE new_postings RENAME TO postings;
    ALTER TABLE new_parked RENAME TO parked;
    CREATE INDEX deltas_by_series ON deltas (series) WHERE series IS NOT NULL;
    """

  static let acknowledged = "loss_acknowledged"

  /// What rates charged, what corrects what, the grants and prices on record, and, beside each
  /// counter, when its sum may be dropped. Counters that an older release dropped by its own rule
  /// are still covered by `cells_ended_before`.
  private static let parts = """
    CREATE TABLE charges (
      series INTEGER NOT NULL, rate TEXT NOT NULL, rate_from INTEGER NOT NULL,
      units INTEGER NOT NULL, charge INTEGER NOT NULL,
      deltas INTEGER NOT NULL, corrections INTEGER NOT NULL,
      PRIMARY KEY (series, rate, rate_from)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE corrections (
      corrected BLOB NOT NULL, bucket INTEGER NOT NULL, op BLOB NOT NULL, idx INTEGER NOT NULL,
      PRIMARY KEY (corrected, bucket, op, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE grants (
      account TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, feature TEXT NOT NULL,
      kind TEXT NOT NULL, amount INTEGER NOT NULL, priority INTEGER NOT NULL,
      effective INTEGER NOT NULL, expires INTEGER, created INTEGER NOT NULL, every TEXT,
      rollover_min INTEGER NOT NULL, rollover_max INTEGER NOT NULL, voided INTEGER,
      reason TEXT NOT NULL, author TEXT NOT NULL,
      PRIMARY KEY (account, id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE prices (
      rate TEXT NOT NULL, rate_from INTEGER NOT NULL, amount INTEGER NOT NULL,
      per INTEGER NOT NULL, changed INTEGER NOT NULL,
      PRIMARY KEY (rate, rate_from)
    ) STRICT, WITHOUT ROWID;
    ALTER TABLE cells ADD COLUMN goes INTEGER;
    ALTER TABLE pruned ADD COLUMN cells_gone_by INTEGER;
    DROP INDEX cells_by_end;
    UPDATE cells SET goes = 2 * period_end - period_start + \(LedgerStore.lateHorizonMilliseconds)
      WHERE \(isShort);
    CREATE INDEX cells_by_end ON cells (goes) WHERE goes IS NOT NULL;
    """

  /// Where a line is billed: a file that an older release wrote is read as it is.
  static func billed(_ db: Database) throws -> (start: String, end: String) {
    try db.tableExists("closings")
      ? ("s.billed_start", "s.billed_end") : ("s.period_start", "s.period_end")
  }

  /// Whether the file has these tables: one that an older release wrote is read as it is.
  static func hasParts(_ db: Database) throws -> Bool { try db.tableExists("charges") }

  /// Who this ledger belongs to, and how far each stream has been read.
  private static let positions = """
    CREATE TABLE deployment (
      only INTEGER PRIMARY KEY CHECK (only = 1),
      id TEXT NOT NULL, buckets INTEGER NOT NULL, hash TEXT NOT NULL,
      key_version INTEGER NOT NULL, mode TEXT NOT NULL, created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE buckets (
      bucket INTEGER PRIMARY KEY, epoch INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE cursors (
      bucket INTEGER NOT NULL, epoch INTEGER NOT NULL, cursor INTEGER NOT NULL,
      PRIMARY KEY (bucket, epoch)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE fences (
      bucket INTEGER NOT NULL, epoch INTEGER NOT NULL, last_seq INTEGER NOT NULL,
      requester TEXT NOT NULL, time INTEGER NOT NULL,
      PRIMARY KEY (bucket, epoch)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE loss (
      bucket INTEGER NOT NULL, epoch INTEGER NOT NULL,
      first INTEGER NOT NULL, last INTEGER NOT NULL, time INTEGER NOT NULL,
      PRIMARY KEY (bucket, epoch, first)
    ) STRICT, WITHOUT ROWID;
    """

  /// Deltas and the double entry made of each.
  private static let books = """
    CREATE TABLE deltas (
      op BLOB NOT NULL, idx INTEGER NOT NULL,
      bucket INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
      kind INTEGER NOT NULL, time INTEGER NOT NULL,
      actual INTEGER NOT NULL, charged INTEGER NOT NULL, absorbed INTEGER NOT NULL,
      series INTEGER, body BLOB NOT NULL,
      PRIMARY KEY (op, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX deltas_by_series ON deltas (series) WHERE series IS NOT NULL;
    CREATE TABLE series (
      id INTEGER PRIMARY KEY,
      account TEXT NOT NULL, feature TEXT NOT NULL,
      period_start INTEGER NOT NULL, period_end INTEGER NOT NULL, adjustment INTEGER NOT NULL,
      actual INTEGER NOT NULL, charged INTEGER NOT NULL, absorbed INTEGER NOT NULL,
      deltas INTEGER NOT NULL,
      UNIQUE (account, feature, period_start, adjustment)
    ) STRICT;
    CREATE TABLE accounts (
      id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, balance INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE postings (
      op BLOB NOT NULL, idx INTEGER NOT NULL, account INTEGER NOT NULL, amount INTEGER NOT NULL,
      PRIMARY KEY (op, idx, account)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE cells (
      account TEXT NOT NULL, subject TEXT NOT NULL, feature TEXT NOT NULL, window TEXT NOT NULL,
      period_start INTEGER NOT NULL, period_end INTEGER NOT NULL, settled INTEGER NOT NULL,
      PRIMARY KEY (account, subject, feature, window, period_start)
    ) STRICT, WITHOUT ROWID;
    CREATE VIEW counters AS
      SELECT c.account, c.subject, c.feature, c.window, c.period_start, c.period_end, c.settled,
        coalesce(f.settled, 0) AS forgiven
      FROM cells AS c LEFT JOIN cells AS f ON f.account = c.account AND f.subject = c.subject
        AND f.feature = c.feature AND f.window = c.window || '^'
        AND f.period_start = c.period_start
      WHERE c.window NOT LIKE '%^'
      UNION ALL
      SELECT f.account, f.subject, f.feature, rtrim(f.window, '^'), f.period_start, f.period_end,
        0, f.settled
      FROM cells AS f WHERE f.window LIKE '%^' AND NOT EXISTS (
        SELECT 1 FROM cells AS c WHERE c.account = f.account AND c.subject = f.subject
          AND c.feature = f.feature AND c.window = rtrim(f.window, '^')
          AND c.period_start = f.period_start);
    CREATE TABLE closed_periods (
      period_start INTEGER NOT NULL, period_end INTEGER NOT NULL, time INTEGER NOT NULL,
      PRIMARY KEY (period_start, period_end)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE pruned (
      only INTEGER PRIMARY KEY CHECK (only = 1), cells_ended_before INTEGER NOT NULL
    ) STRICT;
    """

  /// What is kept beside the books: configuration, and entries that posted nothing.
  private static let records = """
    CREATE TABLE config (
      scope TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL,
      op BLOB NOT NULL, idx INTEGER NOT NULL, time INTEGER NOT NULL,
      action TEXT NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL,
      before TEXT NOT NULL, after TEXT NOT NULL,
      PRIMARY KEY (scope, key, version, time, op, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX config_by_time ON config (time);
    CREATE VIEW config_current AS
      SELECT * FROM config AS c WHERE scope IN ('global', 'account') AND NOT EXISTS (
        SELECT 1 FROM config AS n WHERE n.scope = c.scope AND n.key = c.key
          AND (n.version, n.time, n.op, n.idx) > (c.version, c.time, c.op, c.idx));
    CREATE TABLE duplicates (
      bucket INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
      op BLOB NOT NULL, idx INTEGER NOT NULL, time INTEGER NOT NULL,
      PRIMARY KEY (bucket, epoch, seq, op, idx)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE parked (
      op BLOB NOT NULL, idx INTEGER NOT NULL, reason TEXT NOT NULL, time INTEGER NOT NULL,
      replayed INTEGER,
      PRIMARY KEY (op, idx)
    ) STRICT, WITHOUT ROWID;
    """
}
