// What sidecars hold in stock: lease.list, lease.release; explain shows the same of one subject.

package import TollgateCore

/// What one sidecar's incarnation holds of one account.
package struct LeaseReport: Hashable, Sendable, Codable {
  package enum State: String, Hashable, Sendable, Codable {
    /// Its sidecar prolongs it, or is silent for a moment.
    case live
    /// Nothing was heard of its sidecar: what it may have let through unsettled stays held.
    case inDoubt = "in-doubt"
    /// Of an earlier incarnation of the sidecar that answers, which settles what it let through;
    /// released by itself then.
    case settling
  }

  /// Of one counter, or tokens of a rate.
  package struct Portion: Hashable, Sendable, Codable {
    package var subject: Subject
    package var feature: Name
    /// In words; nil: a rate.
    package var window: String?
    /// Of a rate.
    package var limit: Name?
    package var units: Int64

    package init(subject: Subject, feature: Name, window: String?, limit: Name?, units: Int64) {
      self.subject = subject
      self.feature = feature
      self.window = window
      self.limit = limit
      self.units = units
    }
  }

  package var account: Subject
  /// 16 hex digits, another one for each start of a sidecar.
  package var lessee: String
  /// It is the sidecar that answers.
  package var own: Bool
  package var state: State
  /// Live: when it ends unless it is prolonged. In doubt: when what is held is free whatever comes.
  package var until: WallTime
  package var portions: [Portion]

  package init(
    account: Subject, lessee: LesseeID, own: Bool, state: State, until: WallTime,
    portions: [Portion]
  ) {
    self.account = account
    self.lessee = lessee.hex
    self.own = own
    self.state = state
    self.until = until
    self.portions = portions
  }

  /// `chat.requests 40 in day, tokens 7 of tokens.rate`, what lies deeper with its subject.
  package var text: String {
    portions.map { portion in
      "\(portion.feature) \(portion.units)"
        + (portion.window.map { " in \($0)" } ?? portion.limit.map { " of \($0)" } ?? "")
        + (portion.subject == account ? "" : " for \(portion.subject)")
    }.joined(separator: ", ")
  }
}

package struct LeaseListRequest: Hashable, Sendable, Codable {
  package static let limitMax = 500

  /// nil: all accounts, page by page.
  package var account: Subject?
  /// Only those in doubt.
  package var inDoubt: Bool?
  /// Accounts that a page looks at, about.
  package var limit: Int?
  package var after: String?

  package init(
    account: Subject? = nil, inDoubt: Bool? = nil, limit: Int? = nil, after: String? = nil
  ) {
    self.account = account
    self.inDoubt = inDoubt
    self.limit = limit
    self.after = after
  }
}

package struct LeaseListReply: Hashable, Sendable, Codable {
  package var time: WallTime
  package var leases: [LeaseReport]
  /// Of the next page, which may be empty; nil: this is all.
  package var next: String?

  package init(time: WallTime, leases: [LeaseReport], next: String? = nil) {
    self.time = time
    self.leases = leases
    self.next = next
  }
}

package struct LeaseReleaseRequest: Hashable, Sendable, Codable {
  package var account: Subject
  package var lessee: String
  package var change: ChangeOptions

  package init(account: Subject, lessee: String, change: ChangeOptions) {
    self.account = account
    self.lessee = lessee
    self.change = change
  }
}
