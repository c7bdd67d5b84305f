// Leases as they lie in Redis: read, ended when their time has come, asked back from others.

package import TollgateCore

/// What one lessee holds of an account.
package struct StoredLease: Hashable, Sendable {
  package struct Portion: Hashable, Sendable {
    package var subject: Subject
    /// Of the counter or the rate.
    package var field: String
    package var left: Int64
    package var period: Period

    package var isRate: Bool { !field.contains("|") }
  }

  package var lessee: LesseeID
  package var expires: WallTime
  /// It was not prolonged: what its lessee may have spent is still held.
  package var isInDoubt: Bool
  package var portions: [Portion]

  /// By lessee, from an account header's fields and values.
  package static func all(flat: [RESPReply], account: Subject) -> [StoredLease] {
    var leases: [LesseeID: StoredLease] = [:]
    for index in stride(from: 0, to: flat.count - 1, by: 2) {
      guard let name = flat[index].bytes, name.count >= 9, name[0] == UInt8(ascii: "^"),
        let lessee = LesseeID(bytes: name[1..<9]), let value = flat[index + 1].bytes
      else { continue }
      var lease =
        leases[lessee]
        ?? StoredLease(
          lessee: lessee, expires: WallTime(milliseconds: 0), isInDoubt: false, portions: [])
      var reader = MessagePackReader(value)
      if name.count == 9 {
        guard let expires = reader.integer(), let state = reader.integer() else { continue }
        lease.expires = WallTime(milliseconds: expires)
        lease.isInDoubt = state == 1
      } else {
        let rest = name.dropFirst(9)
        guard let blank = rest.firstIndex(of: UInt8(ascii: " ")),
          let subject = try? Subject(
            account.path + String(decoding: rest[..<blank], as: UTF8.self)),
          let left = reader.integer(), let start = reader.integer(), let end = reader.integer()
        else { continue }
        lease.portions.append(
          Portion(
            subject: subject, field: String(decoding: rest[(blank + 1)...], as: UTF8.self),
            left: left,
            period: Period(
              start: WallTime(milliseconds: start), end: WallTime(milliseconds: end))))
      }
      leases[lessee] = lease
    }
    return leases.values.map { lease in
      var lease = lease
      lease.portions.sort { ($0.subject, $0.field) < ($1.subject, $1.field) }
      return lease
    }.sorted { $0.lessee < $1.lessee }
  }
}

extension [StoredLease] {
  /// Of one counter and period, what all of them have left.
  package func left(of field: String, _ subject: Subject, since start: WallTime) -> Int64 {
    reduce(0) { sum, lease in
      lease.portions.reduce(sum) {
        $1.field == field && $1.subject == subject && $1.period.start == start ? $0 + $1.left : $0
      }
    }
  }
}

/// Ends what is due of an account's leases.
package struct LeaseEndCall: ScriptCall {
  package struct Ended: Hashable, Sendable {
    package var now: WallTime
    /// Leases that came into doubt, and doubts that are over.
    package var ended: Int64
    package var released: Int64
    /// Units of cells that are free again.
    package var units: Int64
  }

  package enum Outcome: Hashable, Sendable {
    case done(Ended)
    case unseeded
    /// There are leases below the account that the caller had not seen: read them and call again.
    case unseen
  }

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var account: Subject
  /// Of the leases' portions, those below the account.
  package var subjects: [Subject]
  /// Whose doubts are over because an operator says so.
  package var releases: [LesseeID]
  /// Who is gone with everything settled, and was closed in this bucket (`LeaseCloseCall`).
  package var closed: [LesseeID]

  /// `leases`: as they were read (`Reads.leases`).
  package init(
    keySpace: KeySpace, fence: Fence, account: Subject, leases: [StoredLease],
    releases: [LesseeID] = [], closed: [LesseeID] = []
  ) {
    self.keySpace = keySpace
    bucket = keySpace.bucket(of: account)
    self.fence = fence
    self.account = account.account
    var deeper: Set<Subject> = []
    for lease in leases {
      for portion in lease.portions where portion.subject.depth > 1 {
        deeper.insert(portion.subject)
      }
    }
    subjects = deeper.sorted()
    self.releases = releases
    self.closed = closed
  }

  package var script: ScriptName { .leaseEnd }
  package var keys: [String] {
    [keySpace.meta(bucket), keySpace.leasesDue(bucket), keySpace.subject(bucket, account)]
      + subjects.map { keySpace.subject(bucket, $0) }
      + (subjects.isEmpty ? [] : [keySpace.index(bucket, account: account)])
  }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .string(String(fence.epoch)), .string(account.path), .integer(Int64(subjects.count)),
    ] + subjects.map { .string(String($0.path.dropFirst(account.path.count))) }
      + releases.map { .bytes($0.bytes) } + closed.map { .bytes($0.bytes + [UInt8(ascii: "!")]) }
  }

  package func decode(_ reply: RESPReply) -> StoreReply<Outcome> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?:
        guard let now = reply[1].number, let ended = reply[2].number,
          let released = reply[3].number, let units = reply[4].number
        else { return nil }
        return .done(
          Ended(
            now: WallTime(milliseconds: now), ended: ended, released: released, units: units))
      case .rebuild?: return .unseeded
      case .counted?: return .unseen
      default: return nil
      }
    }
  }
}

/// A lessee is gone, with everything that it let through settled: none of its calls does anything
/// in this bucket any more, however late it comes.
package struct LeaseCloseCall: ScriptCall {
  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var lessee: LesseeID

  package init(keySpace: KeySpace, bucket: Int, fence: Fence, lessee: LesseeID) {
    self.keySpace = keySpace
    self.bucket = bucket
    self.fence = fence
    self.lessee = lessee
  }

  package var script: ScriptName { .leaseClose }
  package var keys: [String] {
    [keySpace.meta(bucket), keySpace.leaseCalls(bucket, lessee)]
  }
  package var arguments: [RESPArgument] { fence.arguments }

  /// When it was done.
  package func decode(_ reply: RESPReply) -> StoreReply<WallTime> {
    reply.storeReply { reply in
      guard reply.code == .done else { return nil }
      return reply[1].number.map { WallTime(milliseconds: $0) }
    }
  }
}

/// Asks for units that others hold; each of them is told on its channel.
package struct RecallCall: ScriptCall {
  package struct Wanted: Hashable, Sendable {
    package var subject: Subject
    /// Of a counter or a rate (`LeasePortion.field`).
    package var field: String

    package init(subject: Subject, field: String) {
      self.subject = subject
      self.field = field
    }
  }

  package struct Held: Hashable, Sendable {
    package var byOthers: Int64
    package var byAsker: Int64
    package var inDoubt: Int64
  }

  package static let wantedMax = 32

  package var keySpace: KeySpace
  package var bucket: Int
  package var fence: Fence
  package var account: Subject
  package var asker: LesseeID
  package var wanted: [Wanted]

  package init(
    keySpace: KeySpace, fence: Fence, account: Subject, asker: LesseeID, wanted: [Wanted]
  ) {
    precondition(wanted.count <= Self.wantedMax)
    self.keySpace = keySpace
    bucket = keySpace.bucket(of: account)
    self.fence = fence
    self.account = account.account
    self.asker = asker
    self.wanted = wanted
  }

  package var script: ScriptName { .recall }
  package var keys: [String] { [keySpace.meta(bucket), keySpace.subject(bucket, account)] }
  package var arguments: [RESPArgument] {
    fence.arguments + [
      .string(String(fence.epoch)), .string(account.path), .bytes(asker.bytes),
      .string(keySpace.recallChannels),
    ] + wanted.map { .bytes($0.subject.leaseName($0.field)) }
  }

  /// Per place what is held; nil: the account is not seeded in this epoch.
  package func decode(_ reply: RESPReply) -> StoreReply<[Held]?> {
    reply.storeReply { reply in
      switch reply.code {
      case .done?:
        let numbers = (reply.array ?? []).dropFirst(2).compactMap(\.number)
        guard numbers.count == wanted.count * 3 else { return nil }
        return .some(
          stride(from: 0, to: numbers.count, by: 3).map {
            Held(byOthers: numbers[$0], byAsker: numbers[$0 + 1], inDoubt: numbers[$0 + 2])
          })
      case .rebuild?: return .some(nil)
      default: return nil
      }
    }
  }
}

extension Reads {
  /// The leases of an account, of whatever epoch its header is.
  package static func leases(
    _ keySpace: KeySpace, account: Subject
  ) -> ReadCommand<[StoredLease]> {
    let bucket = keySpace.bucket(of: account)
    let account = account.account
    return ReadCommand(
      bucket: bucket, words: [.string("HGETALL"), .string(keySpace.subject(bucket, account))]
    ) { reply in reply.array.map { StoredLease.all(flat: $0, account: account) } }
  }

  /// One page, of about `count`, of the accounts of a bucket that have leases; `cursor` "0" starts,
  /// "0" ends. Each that has one from beginning to end is in some page, whatever changes meanwhile.
  package static func accountsWithLeases(
    _ keySpace: KeySpace, bucket: Int, after cursor: String, count: Int64
  ) -> ReadCommand<(accounts: [Subject], next: String)> {
    ReadCommand(
      bucket: bucket,
      words: [
        .string("ZSCAN"), .string(keySpace.leasesDue(bucket)), .string(cursor), .string("COUNT"),
        .integer(count),
      ]
    ) { reply in
      guard let parts = reply.array, parts.count == 2, let next = parts[0].text,
        let found = parts[1].array
      else { return nil }
      return (
        stride(from: 0, to: found.count, by: 2).compactMap {
          found[$0].text.flatMap { try? Subject($0) }
        }, next
      )
    }
  }

  /// Whether a lessee has a lease of an account, of whatever epoch.
  package static func hasLease(
    _ keySpace: KeySpace, account: Subject, _ lessee: LesseeID
  ) -> ReadCommand<Bool> {
    let bucket = keySpace.bucket(of: account)
    return ReadCommand(
      bucket: bucket,
      words: [
        .string("HEXISTS"), .string(keySpace.subject(bucket, account.account)),
        .bytes([UInt8(ascii: "^")] + lessee.bytes),
      ]
    ) { $0.number.map { $0 == 1 } }
  }

  /// Accounts of a bucket of whose leases something may be due at `now`, at most `count`.
  package static func accountsWithLeasesDue(
    _ keySpace: KeySpace, bucket: Int, now: WallTime, count: Int64
  ) -> ReadCommand<[Subject]> {
    ReadCommand(
      bucket: bucket,
      words: [
        .string("ZRANGE"), .string(keySpace.leasesDue(bucket)), .string("-inf"),
        .integer(now.milliseconds), .string("BYSCORE"), .string("LIMIT"), .integer(0),
        .integer(count),
      ]
    ) { reply in reply.array.map { $0.compactMap { $0.text.flatMap { try? Subject($0) } } } }
  }
}
