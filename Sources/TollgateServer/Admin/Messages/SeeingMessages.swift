// Adjusting what was billed, and seeing what is used: history, top, tail.

package import TollgateCore

package struct AdjustRequest: Hashable, Sendable, Codable {
  /// An account.
  package var subject: Subject
  package var feature: Name
  /// Of either sign, not 0.
  package var amount: Int64
  /// `YYYY-MM`: the billing month; nil: the one that runs, or that of `corrects`.
  package var period: String?
  /// The operation that is corrected; nil: none in particular.
  package var corrects: OperationID?
  package var change: ChangeOptions

  package init(
    subject: Subject, feature: Name, amount: Int64, period: String? = nil,
    corrects: OperationID? = nil, change: ChangeOptions
  ) {
    self.subject = subject
    self.feature = feature
    self.amount = amount
    self.period = period
    self.corrects = corrects
    self.change = change
  }
}

package struct HistoryRequest: Hashable, Sendable, Codable {
  /// Grouped by at most so many things.
  package static let groupsMax = 4
  package static let daysMax: Int64 = 400

  package var subject: Subject
  /// `day`, `feature`, a level of the catalog (`member`), or the key of an attribute (`model`).
  package var by: [String]
  /// Instants of the deltas' births, from … to; nil: the running month, until now.
  package var from: WallTime?
  package var to: WallTime?
  package var feature: Name?
  /// The `next` of the page before.
  package var cursor: String?

  package init(
    subject: Subject, by: [String] = [], from: WallTime? = nil, to: WallTime? = nil,
    feature: Name? = nil, cursor: String? = nil
  ) {
    self.subject = subject
    self.by = by
    self.from = from
    self.to = to
    self.feature = feature
    self.cursor = cursor
  }
}

package struct HistoryReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    /// In the order of `by`; empty where a delta does not say.
    package var key: [String]
    /// What was used, annulments taken off.
    package var used: Int64
    /// What of it was billed.
    package var charged: Int64
    package var absorbed: Int64
    /// Given back (not positive), and adjusted.
    package var refunded: Int64
    package var adjusted: Int64
    package var deltas: Int64

    package init(
      key: [String], used: Int64 = 0, charged: Int64 = 0, absorbed: Int64 = 0, refunded: Int64 = 0,
      adjusted: Int64 = 0, deltas: Int64 = 0
    ) {
      self.key = key
      self.used = used
      self.charged = charged
      self.absorbed = absorbed
      self.refunded = refunded
      self.adjusted = adjusted
      self.deltas = deltas
    }

    /// What is billed in the end.
    package var billed: Int64 { charged + refunded + adjusted }

    package mutating func add(_ other: Row) {
      used += other.used
      charged += other.charged
      absorbed += other.absorbed
      refunded += other.refunded
      adjusted += other.adjusted
      deltas += other.deltas
    }
  }

  package var subject: Subject
  package var by: [String]
  package var from: WallTime
  package var to: WallTime
  /// Of the deltas of this page only: rows of several pages with one key are one row.
  package var rows: [Row]
  /// nil: that was the last page.
  package var next: String?

  package init(
    subject: Subject, by: [String], from: WallTime, to: WallTime, rows: [Row], next: String?
  ) {
    self.subject = subject
    self.by = by
    self.from = from
    self.to = to
    self.rows = rows
    self.next = next
  }
}

package struct TopRequest: Hashable, Sendable, Codable {
  package static let countMax = 50
  package static let windowMillisecondsMax: Int64 = 60_000

  package var windowMilliseconds: Int64
  package var count: Int

  package init(windowMilliseconds: Int64 = 10_000, count: Int = 20) {
    self.windowMilliseconds = windowMilliseconds
    self.count = count
  }
}

package struct TopReply: Hashable, Sendable, Codable {
  package struct Row: Hashable, Sendable, Codable {
    package var account: Subject
    package var feature: Name
    /// Units in the time looked at, and deltas that said so.
    package var units: Int64
    package var deltas: Int64
    /// Thousandths of units per second.
    package var milliPerSecond: Int64
    /// The limit of the account that is used up most; nil: there is none, or it is not known.
    package var limit: Name?
    package var remaining: Int64?
    package var amount: Int64?
    /// Thousandths of that limit that are used.
    package var usedPerMille: Int64?

    package init(
      account: Subject, feature: Name, units: Int64, deltas: Int64, milliPerSecond: Int64
    ) {
      self.account = account
      self.feature = feature
      self.units = units
      self.deltas = deltas
      self.milliPerSecond = milliPerSecond
    }
  }

  package var time: WallTime
  package var windowMilliseconds: Int64
  /// The busiest first.
  package var rows: [Row]
  /// Buckets so busy that what was read of them spans less than the window.
  package var sampled: Int
  /// Buckets that could not be read.
  package var unread: Int

  package init(
    time: WallTime, windowMilliseconds: Int64, rows: [Row], sampled: Int, unread: Int
  ) {
    self.time = time
    self.windowMilliseconds = windowMilliseconds
    self.rows = rows
    self.sampled = sampled
    self.unread = unread
  }
}

package struct TailRequest: Hashable, Sendable, Codable {
  package static let limitMax = 1_000

  package var account: Subject?
  /// Only what was denied or refused.
  package var denied: Bool
  /// What the answer before gave; nil: a new listener.
  package var listener: String?
  package var limit: Int

  package init(
    account: Subject? = nil, denied: Bool = false, listener: String? = nil, limit: Int = 200
  ) {
    self.account = account
    self.denied = denied
    self.listener = listener
    self.limit = limit
  }
}

package struct TailReply: Hashable, Sendable, Codable {
  package struct Item: Hashable, Sendable, Codable {
    package var feature: Name
    package var amount: Int64

    package init(feature: Name, amount: Int64) {
      self.feature = feature
      self.amount = amount
    }
  }

  package struct Event: Hashable, Sendable, Codable {
    package var time: WallTime
    package var subject: Subject
    package var operation: OperationID
    /// `check`, `consume`, `reserve` …
    package var kind: String
    package var items: [Item]
    package var allowed: Bool
    /// The name of a reason, or of an error.
    package var reason: String
    package var source: String
    package var limit: Name?
    package var replayed: Bool
    package var microseconds: Int64

    package init(
      time: WallTime, subject: Subject, operation: OperationID, kind: String, items: [Item],
      allowed: Bool, reason: String, source: String, limit: Name?, replayed: Bool,
      microseconds: Int64
    ) {
      self.time = time
      self.subject = subject
      self.operation = operation
      self.kind = kind
      self.items = items
      self.allowed = allowed
      self.reason = reason
      self.source = source
      self.limit = limit
      self.replayed = replayed
      self.microseconds = microseconds
    }
  }

  /// To be given with the next request; forgotten when none comes for some seconds.
  package var listener: String
  /// In the order in which they were answered, per event loop.
  package var events: [Event]
  /// Since the answer before: more came than the sidecar keeps for a listener.
  package var dropped: Int64

  package init(listener: String, events: [Event], dropped: Int64) {
    self.listener = listener
    self.events = events
    self.dropped = dropped
  }
}
