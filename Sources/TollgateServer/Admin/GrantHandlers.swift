// grant.add | void | list. A grant is part of an account's configuration; what was burnt from it is
// a counter. So adding one writes no counter, and voiding one takes away only what nobody has burnt
// and nobody holds: the burnt part stays on the bill, a hold keeps its slice, and nothing becomes
// negative (PITFALLS 38).
//
// An id is never given twice, since it names a counter in Redis and in the ledger. At most 64
// grants stand in an account. One that ended (expired, or voided) more than 400 days ago may make
// room for a new one: by then its month is billed, its operations cannot be settled, refunded or
// cancelled any more, and no counter of it is kept in Redis. Its id stays taken.

import TollgateCore

extension AdminService {
  func grantAdd(
    _ request: GrantAddRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    let source = try checkSource(request.sourceID, request.sourceVersion)
    let record = try begin(
      request.change, action: "grant.add", request: request, caller: caller)
    return try await changeAccount(request.account, request.change, record) {
      (before, global) throws(AdminFailure) in
      let now = clock()
      let grant = try Self.grant(request, record, global, now: now)
      return try Self.edit(
        before, source, now: now, unchanged: "grant \(grant.id) is there as asked"
      ) { (after) throws(AdminFailure) in
        try Self.add(grant, request, to: &after, global, now: now)
      }
    } impact: { (global, before, after) throws(AdminFailure) in
      try await impact(of: request.account, global, before, after)
    }
  }

  /// Pure: the grant that a request asks for.
  static func grant(
    _ request: GrantAddRequest, _ record: ChangeRecord, _ global: GlobalConfig?, now: WallTime
  ) throws(AdminFailure) -> Grant {
    guard global?.catalog.features[request.feature] != nil else {
      throw .notFound(
        "the catalog has no feature \(request.feature)", fix: "see tollgate catalog show")
    }
    guard (1...Quantity.maximum).contains(request.amount) else {
      throw AdminFailure(
        .amountOutOfRange, "the amount is out of range",
        problems: [
          .init(
            path: "amount", value: "\(request.amount)",
            reason: "must be from 1 to \(Quantity.maximum)")
        ])
    }
    guard let kind = request.kind.map({ Grant.Kind(rawValue: $0) }) ?? .paid else {
      let known = Grant.Kind.allCases.map(\.rawValue).joined(separator: ", ")
      throw .badRequest("kind", "must be one of \(known)", value: request.kind ?? "")
    }
    let priority = request.priority ?? Grant.priorityDefault
    guard (0...Grant.priorityMax).contains(priority) else {
      throw .badRequest("priority", "must be from 0 to \(Grant.priorityMax)", value: "\(priority)")
    }
    let effective = request.effective ?? now
    guard (0...Quantity.maximum).contains(effective.milliseconds) else {
      throw .badRequest("effective_ms", "is out of range", value: "\(effective.milliseconds)")
    }
    if let expires = request.expires {
      guard expires > effective, expires > now, expires.milliseconds <= Quantity.maximum else {
        throw .badRequest(
          "expires_ms", "must be in the future, and after the grant is effective",
          value: CivilDate.text(expires))
      }
    }
    var every: Window?
    if let word = request.every {
      guard let window = Window(word: word), window != .lifetime else {
        throw .badRequest(
          "every", "must be a window that comes again, such as month or anchored month", value: word
        )
      }
      every = window
    }
    var id = request.id
    if id == nil { id = try grantID(record.operation) }
    guard let id else { throw AdminFailure(.internalError, "no id could be made") }
    return Grant(
      id: id, feature: request.feature,
      amount: request.amount, kind: kind, priority: priority, effective: effective,
      expires: request.expires, created: now, every: every, rollover: try rollover(request),
      reason: record.reason, author: record.actor)
  }

  private static func rollover(_ request: GrantAddRequest) throws(AdminFailure) -> Rollover {
    guard request.rolloverMin != nil || request.rolloverMax != nil else { return .none }
    guard request.every != nil else {
      throw .badRequest("rollover_max", "goes with every: only what comes again is carried over")
    }
    let least = request.rolloverMin ?? 0
    guard let most = request.rolloverMax, least >= 0, least <= most, most <= Quantity.maximum else {
      throw .badRequest("rollover_max", "is required with rollover_min, and not below it")
    }
    return Rollover(min: least, max: most)
  }

  static func grantID(_ operation: OperationID) throws(AdminFailure) -> Name {
    do throws(InvalidName) {
      return try Name("g-\(operation.hex)")
    } catch {
      throw AdminFailure(.internalError, "no id could be made: \(error)")
    }
  }

  private static func add(
    _ grant: Grant, _ request: GrantAddRequest, to account: inout AccountConfig,
    _ global: GlobalConfig?, now: WallTime
  ) throws(AdminFailure) -> [String] {
    if let old = account.grants.first(where: { $0.id == grant.id }) {
      if old.isSame(as: grant, request) { return [] }
      throw AdminFailure(
        .conflict, "grant \(grant.id) is there already, with other terms",
        fix: "an id is given once: take another, or leave --id out")
    }
    guard !account.retiredGrants.contains(grant.id.retiredMark) else {
      throw AdminFailure(
        .conflict, "there was a grant \(grant.id) once",
        fix: "an id is given once: take another, or leave --id out")
    }
    guard global?.catalog.limitUses[grant.id] == nil else {
      throw AdminFailure(
        .conflict, "the catalog has a limit \(grant.id), and a plan's own grant has its limit's id",
        fix: "take another id, or leave --id out")
    }
    try account.makeRoomForGrant(now: now)
    account.grants.append(grant)
    var lines = ["grant \(grant.id): \(grant.text)"]
    let plan = global?.plan(of: account, at: now)
    let burns = plan?.entitlements[grant.feature]?.contains {
      if case .credit = $0.kind { true } else { false }
    }
    if burns != true {
      lines.append(
        "note: \(plan.map { "plan \($0.name)" } ?? "the account's plan") has no credit limit of "
          + "\(grant.feature), so nothing burns it")
    }
    return lines
  }

  // MARK: Void

  func grantVoid(
    _ request: GrantVoidRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    try checkIsAccount(request.account)
    let source = try checkSource(request.sourceID, request.sourceVersion)
    let record = try begin(
      request.change, action: "grant.void", request: request, caller: caller)
    return try await changeAccount(request.account, request.change, record) {
      (before, global) throws(AdminFailure) in
      let now = clock()
      return try Self.edit(
        before, source, now: now, unchanged: "grant \(request.id) was voided or expired before"
      ) { (after) throws(AdminFailure) in
        try Self.void(request.id, of: &after, global, now: now)
      }
    } impact: { (global, before, after) throws(AdminFailure) in
      try await impact(of: request.account, global, before, after)
    }
  }

  private static func void(
    _ id: Name, of account: inout AccountConfig, _ global: GlobalConfig?, now: WallTime
  ) throws(AdminFailure) -> [String] {
    guard let index = account.grants.firstIndex(where: { $0.id == id }) else {
      if global?.catalog.limitUses[id] != nil {
        throw .notFound(
          "\(id) is not a grant of the account, but what its plan gives",
          fix: "limit set \(account.plan?.text ?? "SUBJECT") \(id) --amount N changes it")
      }
      let known = account.grants.prefix(20).map(\.id.text).joined(separator: ", ")
      throw .notFound(
        "the account has no grant \(id)",
        fix: known.isEmpty ? "it has no grants" : "it has: \(known)")
    }
    if let ends = account.grants[index].ends, ends <= now { return [] }
    account.grants[index].voided = now
    return ["grant \(id): void; what is burnt or held of it stays"]
  }
}

extension Grant {
  /// `5000 of spend, paid, priority 100, until …`
  package var text: String {
    var text = "\(amount) of \(feature)"
    if let every { text += " every \(every.word)" }
    text += ", \(kind.rawValue), priority \(priority), from \(CivilDate.text(effective))"
    if let expires { text += " until \(CivilDate.text(expires))" }
    if rollover != .none { text += ", rolls over \(rollover.min) … \(rollover.max)" }
    return text
  }

  /// What was asked for a second time, under another operation id.
  func isSame(as other: Grant, _ request: GrantAddRequest) -> Bool {
    feature == other.feature && amount == other.amount && kind == other.kind
      && priority == other.priority && expires == other.expires && every == other.every
      && rollover == other.rollover && voided == nil
      && (request.effective == nil || effective == other.effective)
  }
}

extension Name {
  /// Of a grant whose id is remembered and nothing else.
  var retiredMark: UInt64 { StableHash.of(text) }
}

extension AccountConfig {
  /// Drops the grant that ended first, where there is no room for one more and it ended long ago.
  fileprivate mutating func makeRoomForGrant(now: WallTime) throws(AdminFailure) {
    guard grants.count >= Self.grantsMax else { return }
    let oldest = grants.indices.filter {
      grants[$0].ends.map { $0 + Grant.keptMilliseconds <= now } ?? false
    }.min { (grants[$0].ends ?? now) < (grants[$1].ends ?? now) }
    guard let oldest else {
      throw AdminFailure(
        .conflict,
        "an account has at most \(Self.grantsMax) grants, and none of these ended 400 days ago",
        fix: "give one grant a larger amount instead of several, or one that comes again (--every)")
    }
    guard retiredGrants.count < Self.retiredGrantsMax else {
      throw AdminFailure(
        .conflict, "the account has had \(Self.retiredGrantsMax + Self.grantsMax) grants",
        fix: "use one that comes again (--every)")
    }
    retiredGrants.append(grants.remove(at: oldest).id.retiredMark)
  }
}
