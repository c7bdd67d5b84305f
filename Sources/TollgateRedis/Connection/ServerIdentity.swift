// Who answers on a connection: read once when it opens (run id) and refreshed while it lives
// (replication id and role). The fence compares these inside every script, because no one of them
// alone shows a restart, a restored snapshot and a promotion.

package struct ServerIdentity: Hashable, Sendable {
  package enum Role: Hashable, Sendable {
    case master
    case replica
  }

  /// `run_id`: changes when the process restarts.
  package var runID: String
  /// `master_replid`: changes on promotion and on a fresh start.
  package var replicationID: String
  /// `redis_version`.
  package var version: String
  package var role: Role
  /// When the connection became usable, in nanoseconds of the event loop's monotonic clock.
  package var openedAt: Int64
}

/// The `name:value` lines of an INFO reply.
package struct InfoFields {
  private var fields: [Substring: Substring] = [:]

  package init(_ text: String) {
    for line in text.split(whereSeparator: \.isNewline) {
      guard line.first != "#", let colon = line.firstIndex(of: ":") else { continue }
      fields[line[..<colon]] = line[line.index(after: colon)...]
    }
  }

  package subscript(name: String) -> String? {
    fields[Substring(name)].flatMap { $0.isEmpty ? nil : String($0) }
  }

  package var role: ServerIdentity.Role? {
    switch self["role"] {
    case "master"?: return .master
    case "slave"?, "replica"?: return .replica
    case .some, nil: return nil
    }
  }
}
