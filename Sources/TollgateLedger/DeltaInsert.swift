// Inserting what every delta inserts, itself and its postings, bound straight to SQLite's
// statements.
//
// Why not the library's arguments: they box every value, twelve of a delta and five of a posting,
// which took a quarter of the ledger's time. What is run once per transaction or rarer goes
// through the library.

internal import GRDB
private import GRDBSQLite
internal import TollgateCore

/// A statement whose first parameter is an operation's id, then come integers, then perhaps bytes.
/// It lives as long as the transaction it was made for.
struct DeltaInsert {
  private let db: Database
  private let statement: GRDB.Statement

  init(_ db: Database, sql: String) throws {
    self.db = db
    statement = try db.cachedStatement(sql: sql)
  }

  /// - Throws: `DatabaseError`, with nothing inserted.
  func callAsFunction(
    _ id: OperationID, _ integers: Int64?..., bytes: [UInt8]? = nil
  ) throws {
    // Safe: the statement is of this transaction's connection, which nobody else uses meanwhile.
    let handle = unsafe statement.sqliteStatement
    // Byte order is time order, as in `OperationID.blob`.
    let op = (id.high.bigEndian, id.low.bigEndian)
    // Safe: SQLite is given what lies here without a copy, and forgets it before it goes.
    let problem = unsafe withUnsafeBytes(of: op) { op in
      unsafe (bytes ?? []).withUnsafeBytes { body -> DatabaseError? in
        defer {
          _ = unsafe sqlite3_reset(handle)
          _ = unsafe sqlite3_clear_bindings(handle)
        }
        var code = unsafe sqlite3_bind_blob(handle, 1, op.baseAddress, CInt(op.count), nil)
        var place: CInt = 1
        for integer in integers where code == SQLITE_OK {
          place += 1
          if let integer {
            code = unsafe sqlite3_bind_int64(handle, place, integer)
          } else {
            code = unsafe sqlite3_bind_null(handle, place)
          }
        }
        if code == SQLITE_OK, bytes != nil {
          // Without an address it would be NULL.
          if unsafe body.isEmpty {
            code = unsafe sqlite3_bind_zeroblob(handle, place + 1, 0)
          } else {
            code = unsafe sqlite3_bind_blob(
              handle, place + 1, body.baseAddress, CInt(body.count), nil)
          }
        }
        if code == SQLITE_OK { code = unsafe sqlite3_step(handle) }
        return code == SQLITE_DONE ? nil : error
      }
    }
    if let problem { throw problem }
  }

  /// What the connection says of its last call.
  private var error: DatabaseError {
    let connection = unsafe db.sqliteConnection
    return DatabaseError(
      resultCode: ResultCode(rawValue: unsafe sqlite3_extended_errcode(connection)),
      message: unsafe String(cString: sqlite3_errmsg(connection)), sql: statement.sql)
  }
}
