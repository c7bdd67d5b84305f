// Posts of units that were used earlier than the script can count them: in a month whose bill has
// another period, or under an id that is no longer remembered. They go by the ledger's delta ids.

import TollgateCore

extension Enforcer {
  /// Units that were let through elsewhere belong to the bill of the month they were used in, even
  /// where the post arrives in the next one. Without a ledger there is no bill.
  func isOfEarlierMonth(_ request: Request) -> Bool {
    request.mode == .post && configuration.ledger != nil
      && Self.isOver(monthOf: request.id.time, calendar(of: request.account), at: redisNow)
  }

  static func isOver(
    monthOf used: WallTime, _ calendar: AccountCalendar, at now: WallTime
  ) -> Bool {
    calendar.period(of: .month, containing: used).end <= now
  }

  /// UTC where the account is not known yet: the script answers that before it looks at periods.
  private func calendar(of account: String) -> AccountCalendar {
    let settings = accounts[account]?.calendar ?? []
    return (try? AccountCalendar(settings, SystemZones.book)) ?? .utc
  }

  /// The instant whose periods are asked for. Those of an earlier month are over: the script
  /// answers from the record of the id where there is one, and otherwise that they have passed.
  func billedAt(_ request: Request) -> WallTime {
    isOfEarlierMonth(request) ? request.id.time : redisNow
  }

  func postLate(_ request: Request) {
    guard !request.isAnswered else { return }
    let operation = LatePost(request)
    park(request, .late(operation)) { $0.postLate(operation) }
  }
}
