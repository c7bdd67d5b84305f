// usage.history, top, tail: what is used, over time, now, and as it passes.

import TollgateCore

private struct TopKey: Hashable {
  var account: Subject
  var feature: Name
}

private struct TopSum {
  var units: Int64 = 0
  var deltas: Int64 = 0
  var milliPerSecond: Int64 = 0
}

extension AdminService {
  // MARK: History

  func usageHistory(_ request: HistoryRequest) async throws(AdminFailure) -> HistoryReply {
    guard backend.hasLedger else {
      throw AdminFailure(
        .badRequest, "this deployment has no ledger, and so no history",
        fix: "`tollgate usage` shows the counters of now")
    }
    let global = try await backend.globalConfig()
    let account = try await backend.account(request.subject.account).config
    let calendar = try SystemZones.calendar(of: account)
    let now = clock()
    let to = request.to ?? now + 60_000
    let from = request.from ?? calendar.period(of: .month, containing: min(now, to)).start
    guard from < to else { throw .badRequest("from", "must be before `to`") }
    guard to - from <= HistoryRequest.daysMax * 86_400_000 else {
      throw .badRequest("from", "at most \(HistoryRequest.daysMax) days at once")
    }
    let by = try Self.groups(request.by, global)
    var days: [WallTime] = []
    if by.contains("day") {
      var day = calendar.period(of: .day, containing: from)
      while day.start < to {
        days.append(day.start)
        day = calendar.period(of: .day, containing: day.end)
      }
    }
    let page = try await backend.history(
      HistoryQuestion(
        by: by, account: request.subject.account, subject: request.subject, from: from, to: to,
        days: days, feature: request.feature, cursor: request.cursor))
    let place = by.firstIndex(of: "day")
    let rows = page.rows.map { row in
      guard let place, let start = Int64(row.key[place]) else { return row }
      var row = row
      // The name of a day is that of its middle, in whichever zone it begins.
      let middle = WallTime(milliseconds: start + 43_200_000 + Self.offset(calendar, start))
      row.key[place] = String(CivilDate.text(middle).prefix(10))
      return row
    }
    return HistoryReply(
      subject: request.subject, by: request.by, from: from, to: to, rows: rows, next: page.next)
  }

  /// How far the midnight of a zone lies from that of UTC: −12 … +14 hours.
  private static func offset(_ calendar: AccountCalendar, _ start: Int64) -> Int64 {
    let day: Int64 = 86_400_000
    let past = ((start % day) + day) % day
    return past > 10 * 3_600_000 ? day - past : -past
  }

  /// As the ledger is asked: it knows numbers of levels and keys of attributes.
  private static func groups(
    _ words: [String], _ global: GlobalConfig?
  ) throws(AdminFailure) -> [String] {
    guard words.count <= HistoryRequest.groupsMax, Set(words).count == words.count else {
      throw .badRequest("by", "at most \(HistoryRequest.groupsMax), each once")
    }
    var groups: [String] = []
    for word in words {
      if word == "day" || word == "feature" {
        groups.append(word)
      } else if let level = global?.catalog.levels.firstIndex(where: { $0.text == word }) {
        groups.append("level:\(level + 1)")
      } else if (try? Name(word)) != nil {
        groups.append("attribute:\(word)")
      } else {
        throw .badRequest(
          "by", "is not day, feature, a level of the catalog or the key of an attribute",
          value: word)
      }
    }
    return groups
  }

  // MARK: Top

  /// Deltas that are read of one bucket: what a busy one says of the last moments.
  private static var sampleMax: Int { 500 }
  /// Accounts whose limits are looked at.
  private static var judgedMax: Int { 20 }

  func top(_ request: TopRequest) async throws(AdminFailure) -> TopReply {
    guard (1...TopRequest.countMax).contains(request.count) else {
      throw .badRequest("count", "must be from 1 to \(TopRequest.countMax)")
    }
    guard (1_000...TopRequest.windowMillisecondsMax).contains(request.windowMilliseconds) else {
      throw .badRequest("window_ms", "must be from 1000 to \(TopRequest.windowMillisecondsMax)")
    }
    let now = clock()
    let since = now + -request.windowMilliseconds
    let samples = try await backend.newestDeltas(since: since, limit: Self.sampleMax)
    var sums: [TopKey: TopSum] = [:]
    for sample in samples {
      // Of a bucket that is cut the span that was read stands for the window.
      let oldest = sample.uses.map(\.time).min() ?? since
      let span = max(1, sample.isCut ? max(1, now - oldest) : request.windowMilliseconds)
      for (key, uses) in Dictionary(
        grouping: sample.uses, by: { TopKey(account: $0.account, feature: $0.feature) })
      {
        var sum = sums[key] ?? TopSum()
        let units = uses.reduce(0) { Quantity.adding($0, $1.units) ?? Quantity.maximum }
        sum.units = Quantity.adding(sum.units, units) ?? Quantity.maximum
        sum.deltas += Int64(uses.count)
        let rate = Int128(units) * 1_000_000 / Int128(span)
        sum.milliPerSecond =
          Quantity.adding(
            sum.milliPerSecond, Int64(clamping: min(rate, Int128(Quantity.maximum))))
          ?? Quantity.maximum
        sums[key] = sum
      }
    }
    var rows = sums.map { key, sum in
      TopReply.Row(
        account: key.account, feature: key.feature, units: sum.units, deltas: sum.deltas,
        milliPerSecond: sum.milliPerSecond)
    }
    rows.sort {
      ($1.milliPerSecond, $0.account.path, $0.feature)
        < ($0.milliPerSecond, $1.account.path, $1.feature)
    }
    rows = Array(rows.prefix(request.count))
    try await judge(&rows)
    return TopReply(
      time: now, windowMilliseconds: request.windowMilliseconds, rows: rows,
      sampled: samples.count(where: \.isCut), unread: samples.count(where: \.isUnread))
  }

  /// Adds the limit that is used up most.
  private func judge(_ rows: inout [TopReply.Row]) async throws(AdminFailure) {
    var accounts: [Subject] = []
    for row in rows where !accounts.contains(row.account) { accounts.append(row.account) }
    for account in accounts.prefix(Self.judgedMax) {
      // One that cannot be looked at is shown without its limits.
      guard let usage = try? await usage(UsageRequest(subject: account)) else { continue }
      for index in rows.indices where rows[index].account == account {
        for limit in usage.usage where limit.feature == rows[index].feature {
          guard let amount = limit.amount, let remaining = limit.remaining, let id = limit.limit
          else { continue }
          let left = amount > 0 ? Int128(remaining) * 1_000 / Int128(amount) : 0
          let share = Int64(clamping: 1_000 - min(max(left, 0), 1_000))
          guard share > rows[index].usedPerMille ?? -1 else { continue }
          rows[index].limit = id
          rows[index].remaining = remaining
          rows[index].amount = amount
          rows[index].usedPerMille = share
        }
      }
    }
  }

  // MARK: Tail

  func tail(_ request: TailRequest) async throws(AdminFailure) -> TailReply {
    guard (1...TailRequest.limitMax).contains(request.limit) else {
      throw .badRequest("limit", "must be from 1 to \(TailRequest.limitMax)")
    }
    var id = UInt64.random(in: 1 ... .max)
    if let text = request.listener {
      guard text.utf8.count == 16, let known = UInt64(text, radix: 16) else {
        throw .badRequest("listener", "must be what the answer before gave", value: text)
      }
      id = known
    }
    guard
      let taken = await backend.tail(
        listener: id, account: request.account?.account, deniedOnly: request.denied,
        limit: request.limit)
    else {
      throw AdminFailure(
        .overloaded, "\(DecisionTail.listenersMax) listeners watch this sidecar already",
        fix: "end one of them; it is forgotten after some seconds")
    }
    let text = String(id, radix: 16)
    return TailReply(
      listener: String(repeating: "0", count: 16 - text.count) + text, events: taken.events,
      dropped: taken.dropped)
  }
}
