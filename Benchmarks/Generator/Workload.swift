// Who asks for how much, and when: uniform or zipf subjects with constant amounts, or the rows of
// a trace. Everything follows from the seed; a row of a trace goes to the same subject whatever
// the number of threads.

package import TollgateCore

/// How many units of a feature one operation asks for.
package enum AmountRule: Sendable, Hashable {
  case constant(Int64)
  /// Columns of the trace.
  case context
  case generated
  case total

  /// A number, `context`, `generated` or `total`.
  package init?(_ text: String) {
    switch text {
    case "context": self = .context
    case "generated": self = .generated
    case "total": self = .total
    default:
      guard let amount = Int64(text), amount >= 0 else { return nil }
      self = .constant(amount)
    }
  }

  func amount(_ row: TraceRow?) -> Int64 {
    switch self {
    case .constant(let amount): amount
    case .context: row?.contextTokens ?? 0
    case .generated: row?.generatedTokens ?? 0
    case .total: row.map { $0.contextTokens + $0.generatedTokens } ?? 0
    }
  }
}

/// When the next operation is to be sent.
package enum Arrival: Sendable, Hashable {
  /// As soon as there is a free place: closed loop.
  case closed
  /// At a fixed schedule, operations per second over all threads: open loop.
  case rate(Double)
  /// At the time of its row, `speed` times faster.
  case trace(speed: Double)

  package var isClosed: Bool { self == .closed }
}

package struct Workload: Sendable {
  package let names: SubjectNames
  package let amounts: [AmountRule]
  package let rows: [TraceRow]
  /// nil: one after another, each as often as all others, and so often in a row.
  private let accounts: Popularity?
  private let times: Int
  /// The amounts where no row says them.
  private let constants: [Int64]
  private let seed: UInt64
  private let thread: Int
  private let threads: Int
  private var random: SplitMix
  private var upcoming: Int
  private var asked = 0

  package init(
    names: SubjectNames, accounts: Popularity?, times: Int = 1, amounts: [AmountRule],
    rows: [TraceRow] = [], seed: UInt64, thread: Int = 0, threads: Int = 1
  ) {
    precondition(accounts.map { $0.count == names.accounts } ?? rows.isEmpty)
    self.names = names
    self.accounts = accounts
    self.times = times
    self.amounts = amounts
    constants = amounts.map { $0.amount(nil) }
    self.rows = rows
    self.seed = seed
    self.thread = thread
    self.threads = threads
    random = SplitMix(seed: seed &+ UInt64(thread) &* 0x5851_F42D_4C95_7F2D)
    upcoming = thread
  }

  package func forThread(_ thread: Int, of threads: Int) -> Workload {
    Workload(
      names: names, accounts: accounts, times: times, amounts: amounts, rows: rows, seed: seed,
      thread: thread, threads: threads)
  }

  /// True where a trace has no more rows.
  package var isExhausted: Bool { !rows.isEmpty && upcoming >= rows.count }
  /// Nanoseconds from the first row to the next one.
  package var nextOffset: Int64 {
    isExhausted || rows.isEmpty ? 0 : rows[upcoming].nanoseconds - rows[0].nanoseconds
  }

  /// Draws the next operation: its subject as the answer, its amounts, one for each feature, where
  /// `out` points to.
  @unsafe @inline(__always)
  package mutating func next(into out: UnsafeMutablePointer<Int64>) -> Int {
    guard rows.isEmpty else { return unsafe row(into: out) }
    for index in constants.indices { unsafe out[index] = constants[index] }
    guard accounts != nil else {
      let subject = upcoming < names.count ? upcoming : 0
      asked += 1
      if asked >= times {
        asked = 0
        upcoming = upcoming + threads < names.count ? upcoming + threads : thread
      }
      return subject
    }
    return subject(&random)
  }

  @unsafe @inline(never)
  private mutating func row(into out: UnsafeMutablePointer<Int64>) -> Int {
    let row = rows[upcoming]
    for index in amounts.indices { unsafe out[index] = amounts[index].amount(row) }
    var own = SplitMix(seed: seed ^ UInt64(upcoming) &* 0x2545_F491_4F6C_DD1D)
    upcoming += threads
    return subject(&own)
  }

  @inline(__always)
  private func subject(_ random: inout SplitMix) -> Int {
    let account = accounts?.draw(&random) ?? 0
    return names.members == 0 ? account : account * names.members + random.below(names.members)
  }
}
