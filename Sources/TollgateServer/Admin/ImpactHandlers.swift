// What a change would do at once: how many accounts it reaches, and how many of them would be
// denied a single unit that they may still have now. Used by dry runs and diffs; it reads
// counters and touches nothing. Bounded in accounts and in time; the answer says when it stopped
// early. Judged at the account's own level (for an override: at its subject): members' counters
// are not enumerated.

import TollgateCore

extension AdminService {
  func impact(
    of subject: Subject, _ global: GlobalConfig?, _ before: AccountConfig, _ after: AccountConfig
  ) async throws(AdminFailure) -> Impact {
    guard let global else { return Impact(accountsAffected: 1, accountsExamined: 1) }
    let denied = try await isDeniedAtOnce(
      subject, before: (global, before), after: (global, after))
    return Impact(
      accountsAffected: 1, deniedAtOnce: denied ? 1 : 0, accountsExamined: 1,
      deniedExamples: denied ? [subject.path] : [])
  }

  func impact(
    from before: GlobalConfig?, to after: GlobalConfig
  ) async throws(AdminFailure) -> Impact {
    guard let before else { return Impact() }
    let end = clock() + AdminLimits.examineMilliseconds
    let now = clock()
    var impact = Impact()
    var cursor: String?
    repeat {
      let page = try await backend.accounts(after: cursor, limit: 500)
      impact.accountsExamined += page.entries.count
      let affected = page.entries.filter { Self.isAffected($0.config, before, after, now: now) }
      impact.accountsAffected += affected.count
      let denied = await Self.inParallel(affected) { entry in
        do throws(AdminFailure) {
          return Result<Bool, AdminFailure>.success(
            try await isDeniedAtOnce(
              entry.account, before: (before, entry.config), after: (after, entry.config)))
        } catch {
          return .failure(error)
        }
      }
      for (entry, result) in zip(affected, denied) where try result.get() {
        impact.deniedAtOnce += 1
        if impact.deniedExamples.count < Impact.examplesMax {
          impact.deniedExamples.append(entry.account.path)
        }
      }
      cursor = page.next
      if cursor != nil && (impact.accountsExamined >= AdminLimits.examinedMax || clock() >= end) {
        impact.complete = false
        break
      }
    } while cursor != nil
    return impact
  }

  static func isAffected(
    _ account: AccountConfig, _ before: GlobalConfig, _ after: GlobalConfig, now: WallTime
  ) -> Bool {
    guard before.bypasses == after.bypasses, before.catalog.levels == after.catalog.levels else {
      return true
    }
    let (old, new) = (before.plan(of: account, at: now), after.plan(of: account, at: now))
    // A plan's rank alone changes nothing for those who are on it.
    guard old?.name == new?.name, old?.entitlements == new?.entitlements else { return true }
    guard before.catalog.rates == after.catalog.rates else { return true }
    let features = old?.entitlements.keys.map { $0 } ?? []
    return features.contains { before.catalog.features[$0] != after.catalog.features[$0] }
  }

  /// Whether some feature that the account may use now is denied one unit afterwards.
  func isDeniedAtOnce(
    _ subject: Subject, before: (GlobalConfig, AccountConfig),
    after: (GlobalConfig, AccountConfig)
  ) async throws(AdminFailure) -> Bool {
    let now = clock()
    let features = before.0.plan(of: before.1, at: now)?.entitlements.keys.sorted() ?? []
    guard !features.isEmpty else { return false }
    var questions: [Question] = []
    for feature in features {
      let items = [Item(feature: feature, amount: 1)]
      for (global, account) in [before, after] {
        questions.append(
          Question(
            resolution: .resolve(
              subject: subject, items: items, global: global, account: account, now: now,
              zones: SystemZones.book)))
      }
    }
    let judged = try await judge(subject, questions)
    return stride(from: 0, to: judged.count, by: 2).contains { index in
      judged[index].outcome.reason.isAllowed && !judged[index + 1].outcome.reason.isAllowed
    }
  }

  struct Question: Sendable {
    var resolution: Resolution
  }

  /// Judges several resolutions of one subject against one consistent read of its counters.
  func judge(
    _ subject: Subject, _ questions: [Question]
  ) async throws(AdminFailure) -> [LimitJudge] {
    var quotas: [CounterReference] = []
    var rates: [RateReference] = []
    var needs: [(quotas: [CounterReference], rates: [RateReference])] = []
    for question in questions {
      let references = LimitJudge.references(
        subject: subject, resolution: question.resolution)
      needs.append(references)
      quotas += references.quotas
      rates += references.rates
    }
    let all = try await backend.counters(
      account: subject.account, quotas: quotas, rates: rates)
    var judged: [LimitJudge] = []
    var (quota, rate) = (0, 0)
    for (question, need) in zip(questions, needs) {
      var part = all
      part.counters = Array(all.counters[quota..<quota + need.quotas.count])
      part.rates = Array(all.rates[rate..<rate + need.rates.count])
      quota += need.quotas.count
      rate += need.rates.count
      judged.append(
        LimitJudge(
          subject: subject, resolution: question.resolution, snapshot: part))
    }
    return judged
  }
}
