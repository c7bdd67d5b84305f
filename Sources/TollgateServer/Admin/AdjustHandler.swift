// adjust: an operator's correction of what an account is billed. The bill, the counters of long
// windows and the books move alike, by one delta; nothing that was recorded before is touched.

import TollgateCore

extension AdminService {
  func adjust(
    _ request: AdjustRequest, _ caller: AdminCaller
  ) async throws(AdminFailure) -> ChangeReply {
    let record = try begin(
      request.change, action: "adjust", request: request, caller: caller, reasonRequired: true)
    let account = request.subject
    guard account.depth == 1 else {
      throw .badRequest("subject", "what is billed is an account's", value: account.path)
    }
    guard request.amount != 0, Quantity.isValid(request.amount) else {
      throw .badRequest(
        "amount", "must be from −(2^53 − 1) to 2^53 − 1, and not 0", value: "\(request.amount)")
    }
    guard request.period == nil || request.corrects == nil else {
      throw .badRequest("period", "an operation has its own period: name one of the two")
    }
    guard backend.hasLedger else {
      throw AdminFailure(.badRequest, "this deployment has no ledger: nothing is billed")
    }
    let global = try await backend.globalConfig()
    guard let feature = global?.catalog.features[request.feature], feature.metered else {
      throw .badRequest(
        "feature", "is not a metered feature of the catalog: nothing of it is on the bill",
        value: request.feature.text)
    }
    let state = try await backend.account(account)
    // After a loss of Redis the account's memory, seeded from the ledger, is what knows the id.
    if let entry = try Self.entry(of: record, in: state.memory) {
      return try await reply(
        .replayed, Written(version: 0, bucket: state.bucket, position: nil, time: entry.time),
        request.change, record, changes: [])
    }
    let calendar = try SystemZones.calendar(of: state.config)
    let now = clock()
    let running = calendar.period(of: .month, containing: now)
    var period = running
    if let text = request.period {
      guard let inside = CivilMonth.middle(of: text) else {
        throw .badRequest("period", "is not a month: give YYYY-MM", value: text)
      }
      period = calendar.period(of: .month, containing: inside)
      guard period.start <= running.start else {
        throw .badRequest("period", "has not begun", value: text)
      }
    }
    let lines = try await effect(of: request, on: account, period)
    if request.change.dryRun {
      return ChangeReply(
        result: .dryRun, operation: record.operation, version: 0,
        impact: Impact(accountsAffected: 1, accountsExamined: 1), changes: lines)
    }
    let outcome = try await backend.adjust(
      Adjustment(
        account: account, feature: request.feature, amount: request.amount, period: period,
        isRunning: period == running, corrects: request.corrects), change: record)
    switch outcome {
    case .adjusted(let written):
      return try await reply(.applied, written, request.change, record, changes: lines)
    case .replayed(let written):
      return try await reply(.replayed, written, request.change, record, changes: [])
    }
  }

  /// What it would do, in words; throws where it cannot be done.
  private func effect(
    of request: AdjustRequest, on account: Subject, _ period: Period
  ) async throws(AdminFailure) -> [String] {
    let (feature, amount) = (request.feature, request.amount)
    if let operation = request.corrects {
      let left = try await backend.left(of: operation, account: account)
      guard let item = left.first(where: { $0.feature == feature }) else {
        throw .notFound(
          "operation \(operation) of \(account) used no \(feature) that the ledger knows of",
          fix: "check the id; a delta is delivered within a second where the ledger is up")
      }
      guard amount > 0 || -amount <= item.amount else {
        throw AdminFailure(
          .conflict, "\(item.amount) of \(feature) are left of operation \(operation)",
          fix: "take back at most that, or adjust without --operation")
      }
      let after = Quantity.adding(item.amount, amount) ?? Quantity.maximum
      return ["\(account) \(feature) of operation \(operation): \(item.amount) → \(after)"]
    }
    let billing = try await backend.ledgerBilling(account: account)
    let billed = billing.totals.filter { $0.feature == feature && $0.period.start == period.start }
      .reduce(0) { $0 + $1.settled }
    guard let after = Quantity.adding(billed, amount) else {
      throw .badRequest("amount", "the bill would leave the range", value: "\(amount)")
    }
    // Of the running month Redis has the last word: some of it is on its way to the ledger.
    guard after >= 0 || amount > 0 || period.contains(clock()) else {
      throw AdminFailure(
        .conflict, "\(billed) of \(feature) were billed in that month: no more can be taken back")
    }
    return [
      "\(account) \(feature) in the month from \(CivilDate.text(period.start)): "
        + "\(billed) → \(after) as delivered"
    ]
  }
}

enum CivilMonth {
  /// An instant in the middle of `YYYY-MM`, whatever the zone.
  static func middle(of text: String) -> WallTime? {
    let parts = text.split(separator: "-", omittingEmptySubsequences: false)
    guard parts.count == 2, parts[0].count == 4, parts[1].count == 2,
      parts.allSatisfy({ $0.utf8.allSatisfy { (0x30...0x39).contains($0) } }),
      let year = Int64(parts[0]), let month = Int(parts[1]), (1970...9999).contains(year),
      (1...12).contains(month)
    else { return nil }
    return WallTime(
      milliseconds: CivilDate.days(year: year, month: month, day: 15) * 86_400_000)
  }
}
