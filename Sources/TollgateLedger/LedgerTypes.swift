// The values that go in and out of the ledger's store, apart from the delta stream itself.

package import TollgateCore

package enum LedgerError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The file holds the books of another installation; each difference names both values.
  case deploymentMismatch([Deployment.Difference])
  /// No deployment was ever recorded in this file.
  case noDeployment(path: String)
  /// The file was written by a newer release, or is no ledger.
  case unusable(String)
  /// The queue before the writer is full: nothing was written, send it again later.
  case overloaded
  /// The ledger is shutting down: nothing was written.
  case draining
  /// The database refused; nothing of the transaction is in force.
  case storage(String)

  package var description: String {
    switch self {
    case .deploymentMismatch(let differences):
      "the ledger belongs to another deployment: "
        + differences.map(\.description).joined(separator: "; ")
    case .noDeployment(let path): "\(path) holds no deployment record: is it a ledger?"
    case .unusable(let reason): "the ledger file cannot be used: \(reason)"
    case .overloaded: "the ledger's queue is full"
    case .draining: "the ledger is shutting down"
    case .storage(let reason): "the database refused: \(reason)"
    }
  }
}

/// Closes an epoch of a bucket: everything anyone still holds of it, and how far it is known to
/// have reached.
package struct RecoveryRequest: Hashable, Sendable {
  package var bucket: Int
  /// The epoch that is over; 0 where the requester knew none.
  package var epoch: Int64
  /// The highest sequence number of that epoch that anyone has seen, delivered or not.
  package var highestSeen: Int64
  /// In any order, with any repetition.
  package var entries: [OutboxEntry]
  /// Who asked, for the record.
  package var requester: String

  package init(
    bucket: Int, epoch: Int64, highestSeen: Int64, entries: [OutboxEntry], requester: String
  ) {
    self.bucket = bucket
    self.epoch = epoch
    self.highestSeen = highestSeen
    self.entries = entries
    self.requester = requester
  }
}

package struct RecoveryOutcome: Hashable, Sendable {
  /// The epoch now in force.
  package var epoch: Int64
  /// False where an earlier recovery had closed that epoch already: nothing was done.
  package var isNew: Bool
  /// What the fence recorded: the last sequence number of the closed epoch.
  package var lastSequence: Int64
  package var losses: [ClosedRange<Int64>]
  package var posted: Int
  package var parked: Int
  /// Where this ledger stood, where the closed epoch is above any it issued: it went backwards.
  package var behind: BucketPosition?

  package init(
    epoch: Int64, isNew: Bool, lastSequence: Int64 = 0, losses: [ClosedRange<Int64>] = [],
    posted: Int = 0, parked: Int = 0, behind: BucketPosition? = nil
  ) {
    self.epoch = epoch
    self.isNew = isNew
    self.lastSequence = lastSequence
    self.losses = losses
    self.posted = posted
    self.parked = parked
    self.behind = behind
  }
}

/// A bucket's current epoch and how far it is delivered.
package struct BucketPosition: Hashable, Sendable, Codable {
  package var bucket: Int
  package var epoch: Int64
  package var cursor: Int64
}

/// A counter's sum, as Redis is seeded with it.
package struct CellBalance: Hashable, Sendable, Codable {
  package var subject: String
  package var feature: String
  /// The window's code.
  package var window: String
  package var start: Int64
  package var end: Int64
  /// The sum of everything posted to this counter.
  package var settled: Int64
  /// Units that an operator's reset took out of the limits' sight in this period.
  package var forgiven: Int64
}

/// One line of the books: an account's use of a feature in one billing period.
package struct UsageTotal: Hashable, Sendable, Codable {
  package var account: String
  package var feature: String
  package var start: Int64
  package var end: Int64
  /// Posted after the period was closed.
  package var adjustment: Bool
  package var actual: Int64
  package var charged: Int64
  package var absorbed: Int64
  package var deltas: Int64
}

/// One delta as it is on record.
package struct DeltaRecord: Hashable, Sendable, Codable {
  package var id: String
  package var bucket: Int
  package var epoch: Int64
  package var sequence: Int64
  package var kind: UInt8
  package var time: Int64
  package var actual: Int64
  package var charged: Int64
  package var absorbed: Int64
}

package struct ConfigRecord: Hashable, Sendable, Codable {
  package var scope: String
  package var key: String
  package var version: Int64
  package var operation: String
  package var action: String
  package var actor: String
  package var reason: String
  package var before: String
  package var after: String
  package var time: Int64
}

package struct LossRecord: Hashable, Sendable, Codable {
  /// Somebody has looked at it, and says what came of it.
  package struct Acknowledgement: Hashable, Sendable, Codable {
    package var time: Int64
    package var actor: String
    package var reason: String
  }

  package var bucket: Int
  package var epoch: Int64
  package var first: Int64
  package var last: Int64
  /// When it was recorded.
  package var time: Int64
  package var acknowledged: Acknowledgement?
  /// Deltas of the bucket that were born before the row was written and arrived in a later epoch;
  /// nil where it was not asked for.
  package var late: Int64?

  /// `bucket/epoch/first`: names the row.
  package var id: String { "\(bucket)/\(epoch)/\(first)" }
}

package struct ParkedRecord: Hashable, Sendable, Codable {
  package var id: String
  package var bucket: Int
  package var epoch: Int64
  package var sequence: Int64
  package var reason: String
}

package struct LedgerStatus: Hashable, Sendable, Codable {
  package var deployment: Deployment?
  package var positions: [BucketPosition]
  package var deltas: Int64
  package var duplicates: Int64
  package var parked: Int64
  package var lostSequences: Int64
  /// Of them: in rows that somebody has acknowledged.
  package var acknowledgedSequences: Int64
  package var configRecords: Int64
}

/// A page of an answer; `next` is what to pass to get the following one, nil at the end.
package struct LedgerPage<Element: Sendable, Key: Sendable>: Sendable {
  package var elements: [Element]
  package var next: Key?
}
