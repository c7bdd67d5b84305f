// The exchange between a lessee and one bucket: settles, gives back, asks for more, prolongs. What
// each number means is said in lease.lua.
//
// Why this shape: at full load such a call carries dozens of accounts every few milliseconds, so
// everything that the script would look up is written down for it by place, in one run of
// MessagePack per account, and it answers in one run per account.

package import TollgateCore

/// What one lessee holds of one counter or rate, or only counts there.
package struct LeasePortion: Hashable, Sendable {
  package enum Source: Hashable, Sendable {
    case cell(window: Window, period: Period)
    /// Microseconds, as in `AppliedLimit.Rule.rate`.
    case rate(limit: Name, intervalMicroseconds: Int64, toleranceMicroseconds: Int64)
  }

  /// A limit that judges what is granted.
  package enum Bound: Hashable, Sendable {
    case quota(amount: Int64)
    case sliding(amount: Int64, lengthMilliseconds: Int64)
    /// What this grant has, less what is owed. `others`: what else its item is burnt from.
    case grant(amount: Int64, others: [Instance])
  }

  package struct Instance: Hashable, Sendable {
    package var grant: Name
    package var start: WallTime
    package var amount: Int64

    package init(grant: Name, start: WallTime, amount: Int64) {
      self.grant = grant
      self.start = start
      self.amount = amount
    }
  }

  package var subject: Subject
  package var feature: Name
  package var source: Source
  /// Used since the exchange before; negative where more was taken back.
  package var settle: Int64
  /// Units that the lease shall have afterwards. nil: as it is.
  package var target: Int64?
  /// Of a cell. None: it is only counted, and nothing is held there. A rate's bound is its own.
  package var bounds: [Bound]

  package init(
    subject: Subject, feature: Name, source: Source, settle: Int64 = 0, target: Int64? = nil,
    bounds: [Bound] = []
  ) {
    self.subject = subject
    self.feature = feature
    self.source = source
    self.settle = settle
    self.target = target
    self.bounds = bounds
  }

  /// Of the counter or the rate, in its subject's hash.
  package var field: String {
    switch source {
    case .cell(let window, _): KeySpace.field(feature: feature, window: window)
    case .rate(let limit, _, _): KeySpace.field(feature: feature, rate: limit)
    }
  }

  package var isLeased: Bool {
    if case .rate = source { return true }
    return !bounds.isEmpty
  }
}

package struct LeaseDelta: Hashable, Sendable {
  /// Negative: units that are taken back.
  package var amount: Int64
  package var body: [UInt8]

  package init(amount: Int64, body: [UInt8]) {
    self.amount = amount
    self.body = body
  }
}

package struct LeaseAccount: Hashable, Sendable {
  package var account: Subject
  package var globalVersion: Int64
  package var accountVersion: Int64
  /// Higher than of every call before, of this lessee for this account.
  package var ordinal: Int64
  /// Nothing is unsettled but what is settled here, and nothing can be spent until the answer.
  package var isWhole: Bool
  /// Of one counter the older period first.
  package var portions: [LeasePortion]
  package var deltas: [LeaseDelta]

  package init(
    account: Subject, globalVersion: Int64, accountVersion: Int64, ordinal: Int64,
    isWhole: Bool = false, portions: [LeasePortion], deltas: [LeaseDelta] = []
  ) {
    self.account = account
    self.globalVersion = globalVersion
    self.accountVersion = accountVersion
    self.ordinal = ordinal
    self.isWhole = isWhole
    self.portions = portions
    self.deltas = deltas
  }
}

package struct LeaseCall: BatchedCall {
  /// A call holds up every other caller of its Redis.
  package static let accountsMax = 64
  /// Indices of deltas from 128 are others' (DeltaID).
  package static let deltasMax = 120
  /// Per account; what one run of values may hold is bounded by Lua's stack.
  package static let portionsMax = 256

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var lessee: LesseeID
  /// Its deltas are numbered as they stand in the call. Ids ascend.
  package var operation: OperationID
  package var timeToLiveMilliseconds: Int64
  package var outboxEntriesMax: Int64
  /// Each account once, all of the bucket.
  package var accounts: [LeaseAccount]

  package init(
    keySpace: KeySpace, bucket: Int, fence: Fence, lessee: LesseeID, operation: OperationID,
    timeToLiveMilliseconds: Int64, outboxEntriesMax: Int64, accounts: [LeaseAccount]
  ) {
    precondition((1...Self.accountsMax).contains(accounts.count))
    precondition(accounts.reduce(0) { $0 + $1.deltas.count } <= Self.deltasMax)
    precondition(accounts.allSatisfy { $0.portions.count <= Self.portionsMax })
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.lessee = lessee
    self.operation = operation
    self.timeToLiveMilliseconds = timeToLiveMilliseconds
    self.outboxEntriesMax = outboxEntriesMax
    self.accounts = accounts
  }

  package var script: ScriptName { .lease }

  package func encoded() -> BatchEncoding {
    var keys = [
      keySpace.meta(bucket), keySpace.outbox(bucket), keySpace.leaseCalls(bucket, lessee),
      keySpace.leasesDue(bucket),
    ]
    let mark = [UInt8(ascii: "^")] + lessee.bytes
    var runs: [[UInt8]] = []
    runs.reserveCapacity(accounts.count)
    for account in accounts { runs.append(account.encoded(&keys, keySpace, bucket, mark)) }
    var head = MessagePackWriter(capacity: 80)
    head.append(fence.seenSequence)
    head.append(fence.seenMicroseconds)
    head.append(String(fence.epoch))
    head.append(timeToLiveMilliseconds)
    head.append(outboxEntriesMax)
    head.append(lessee.bytes)
    head.append(accounts.count)
    head.append(operation.bytes)
    head.append(operation.time.milliseconds)
    return BatchEncoding(keys: keys, head: head.bytes, parts: runs)
  }

  package var tailCount: Int { accounts.reduce(0) { $0 + 1 + $1.deltas.count } }

  package func forEachOfTail(_ parts: [[UInt8]], _ body: ([UInt8]) -> Void) {
    for (account, run) in zip(accounts, parts) {
      body(run)
      for delta in account.deltas { body(delta.body) }
    }
  }

  package func decode(_ reply: RESPReply) -> LeaseOutcome { LeaseOutcome(reply, to: self) }

  /// The sequence of its first delta, also where it had been made before; 0: it bears none.
  package func firstSequence(_ reply: RESPReply) -> Int64 {
    switch reply.code {
    case .done?, .replayed?: reply[2].number ?? 0
    default: 0
    }
  }

  /// The deltas it bears, as the ledger will get them: what a sidecar retains, and appends by
  /// `RepostCall` where the call is too old.
  package func entries(bornAt time: WallTime, from first: Int64 = 0) -> [OutboxEntry] {
    accounts.flatMap(\.deltas).enumerated().map { index, delta in
      OutboxEntry(
        sequence: first > 0 ? first + Int64(index) : 0, kind: delta.amount < 0 ? .refund : .usage,
        id: DeltaID(operation: operation, index: UInt16(index)), time: time, actual: delta.amount,
        charged: delta.amount, absorbed: 0, body: delta.body)
    }
  }
}

extension LeaseAccount {
  /// Adds the account's keys, and names everything by its place.
  fileprivate func encoded(
    _ keys: inout [String], _ keySpace: KeySpace, _ bucket: Int, _ mark: [UInt8]
  ) -> [UInt8] {
    var deeper: [Subject] = []
    var names: [[[UInt8]]] = [[]]
    /// Of each portion: hash, place in the hash's names, place of its lease in the header's.
    var places: [(hash: Int, field: Int, lease: Int?)] = []
    places.reserveCapacity(portions.count)
    /// Of what is owed and of other grants, as they are met. Grants are the account's.
    var grants: [Int] = []
    func place(_ name: [UInt8], _ hash: Int) -> Int {
      if let found = names[hash].firstIndex(of: name) { return found }
      names[hash].append(name)
      return names[hash].count - 1
    }
    for portion in portions {
      var hash = 0
      if portion.subject.depth > 1 {
        if let found = deeper.firstIndex(of: portion.subject) {
          hash = found + 1
        } else {
          deeper.append(portion.subject)
          names.append([])
          hash = deeper.count
        }
      }
      let field = portion.field
      let lease =
        portion.isLeased
        ? place(mark + portion.subject.leaseName(field), 0) : nil
      places.append((hash, place(Array(field.utf8), hash), lease))
      for window in portion.alsoRead {
        let other = KeySpace.field(feature: portion.feature, window: window)
        grants.append(place(Array(other.utf8), 0))
      }
    }
    var grant = grants.makeIterator()
    var writer = MessagePackWriter(capacity: 64 + 96 * portions.count)
    writer.append(globalVersion)
    writer.append(accountVersion)
    writer.append(names.count)
    writer.append(portions.count)
    writer.append(deltas.count)
    writer.append(ordinal)
    writer.append(isWhole ? 1 : 0)
    keys.append(keySpace.subject(bucket, account))
    writer.append(keys.count)
    if !deeper.isEmpty {
      keys.append(keySpace.index(bucket, account: account))
      writer.append(keys.count)
      for subject in deeper {
        keys.append(keySpace.subject(bucket, subject))
        writer.append(keys.count)
      }
    }
    // Where each hash's first name will stand, from 1.
    var first = 8 + (deeper.isEmpty ? 0 : 1 + deeper.count) + 2
    var starts: [Int] = []
    for list in names {
      starts.append(first)
      first += list.count + 1
      writer.append(list.count)
      for name in list { writer.append(name) }
    }
    for (portion, place) in zip(portions, places) {
      writer.append(place.hash + 1)
      writer.append(starts[place.hash] + place.field)
      writer.append(place.lease.map { starts[0] + $0 } ?? 0)
      let target = portion.isLeased ? portion.target ?? -1 : -1
      switch portion.source {
      case .cell(_, let period):
        writer.append(period.start.milliseconds)
        writer.append(period.end.milliseconds)
        writer.append(portion.settle)
        writer.append(target)
        writer.append(0)
        writer.append(portion.bounds.reduce(0) { $0 + $1.terms })
        for bound in portion.bounds {
          switch bound {
          case .quota(let amount):
            writer.append(1)
            writer.append(amount)
            writer.append(0)
          case .sliding(let amount, let length):
            writer.append(4)
            writer.append(amount)
            writer.append(length)
          case .grant(let amount, let others):
            writer.append(6)
            writer.append(amount)
            writer.append(starts[0] + (grant.next() ?? 0))
            for other in others {
              writer.append(9)
              writer.append(starts[0] + (grant.next() ?? 0))
              writer.append(other.start.milliseconds)
              writer.append(9)
              writer.append(other.amount)
              writer.append(0)
            }
          }
        }
      case .rate(_, let interval, let tolerance):
        writer.append(0)
        writer.append(0)
        writer.append(portion.settle)
        writer.append(target)
        writer.append(1)
        writer.append(1)
        writer.append(2)
        writer.append(interval)
        writer.append(tolerance)
      }
    }
    for delta in deltas { writer.append(delta.amount) }
    return writer.bytes
  }
}

extension Subject {
  /// What follows the lessee in the name of a lease's field.
  func leaseName(_ field: String) -> [UInt8] {
    Array(path.utf8.drop { $0 != UInt8(ascii: "/") }) + [UInt8(ascii: " ")] + Array(field.utf8)
  }
}

extension LeasePortion.Bound {
  /// How many the script is told.
  fileprivate var terms: Int {
    switch self {
    case .quota, .sliding: 1
    case .grant(_, let others): 1 + 2 * others.count
    }
  }
}

extension LeasePortion {
  /// Counters that are looked at beside its own, in the order of its bounds.
  fileprivate var alsoRead: [Window] {
    bounds.flatMap { bound -> [Window] in
      guard case .grant(_, let others) = bound else { return [] }
      return [.deficit] + others.map { .grant($0.grant) }
    }
  }

  /// Of an operation that may be leased: every counter it adds to and every rate it draws from,
  /// with the limits that judge each. Amounts of its items do not matter.
  package static func all(of resolution: Resolution, subject: Subject) -> [LeasePortion] {
    func feature(_ item: Int) -> Name { resolution.items[item].feature }
    var portions = resolution.cells.map { cell in
      LeasePortion(
        subject: subject.prefix(cell.level), feature: feature(cell.item),
        source: .cell(window: cell.window, period: cell.period))
    }
    for limit in resolution.limits {
      switch limit.rule {
      case .quota(let cell, let amount): portions[cell].bounds.append(.quota(amount: amount))
      case .sliding(let cell, let amount, let length):
        portions[cell].bounds.append(.sliding(amount: amount, lengthMilliseconds: length))
      case .rate(_, let tolerance, let interval):
        portions.append(
          LeasePortion(
            subject: subject.prefix(limit.level), feature: feature(limit.item),
            source: .rate(
              limit: limit.id, intervalMicroseconds: interval, toleranceMicroseconds: tolerance)))
      case .unlimited, .deny, .concurrency, .credit, .spendCap: continue
      }
    }
    for draws in resolution.draws.values {
      for draw in draws where !draw.isVoided {
        let others = draws.filter { $0.cell != draw.cell && !$0.isVoided }.map {
          Instance(
            grant: $0.grant, start: resolution.cells[$0.cell].period.start, amount: $0.amount)
        }
        portions[draw.cell].bounds.append(.grant(amount: draw.amount, others: others))
      }
    }
    return portions
  }
}
