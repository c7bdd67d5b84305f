// grant add | void | list: prepaid and promotional credit of an account.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct GrantCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "grant", abstract: "Prepaid and promotional credit of an account.",
    subcommands: [GrantAdd.self, GrantVoid.self, GrantList.self])
}

struct GrantAdd: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Give an account units of a feature, beside what its plan gives.",
    discussion: """
      Burnt by priority (lower first), then by end (none last), promotional before paid, oldest \
      first. What is owed is paid from it before anything else. With --every a new instance comes \
      in each period, and --rollover-max lets so much of what is left go over into the next. An id \
      is given once; asked for again with the same terms, it changes nothing.
      """)

  @Argument(help: "The account.") var account: Subject
  @Argument(help: "The feature.") var feature: Name
  @Argument(help: "Units; of a recurring grant, of each instance.") var amount: Int64
  @Option(
    name: .customLong("grant"),
    help: ArgumentHelp("The grant's id; without one, made from the operation id.", valueName: "id"))
  var grant: Name?
  @Option(help: "paid or promotional.") var kind: Grant.Kind = .paid
  @Option(help: "0 … 1000, lower burns first.") var priority: Int64?
  @Option(help: ArgumentHelp("From then on: 7d or an instant. Without: now.", valueName: "when"))
  var effective: String?
  @Option(help: ArgumentHelp("Until then: 30d or an instant.", valueName: "when"))
  var expires: String?
  @Option(
    help: ArgumentHelp("Again in each such period: month, anchored month.", valueName: "window"))
  var every: String?
  @Option(help: "Units that go over at least, as far as the grant has them.") var rolloverMin:
    Int64?
  @Option(help: "Units that go over at most.") var rolloverMax: Int64?
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (1...Quantity.maximum).contains(amount) else {
      throw ValidationError("The amount must be from 1 to \(Quantity.maximum).")
    }
    if let every, Window(word: every) == nil {
      throw ValidationError("--every \(every): give a window, e.g. month or \"anchored month\".")
    }
    for (option, text) in [("--effective", effective), ("--expires", expires)] {
      guard let text, Durations.instant(text, now: .now) == nil else { continue }
      throw ValidationError("\(option) \(text): give e.g. 30d or 2026-12-01T00:00:00Z.")
    }
    guard rolloverMin == nil || rolloverMax != nil else {
      throw ValidationError("--rollover-min goes with --rollover-max.")
    }
  }

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    // Counted from the id's time, so that a repetition with the same id asks for the same instant.
    let base = options.operation?.time ?? .now
    let request = GrantAddRequest(
      account: account, feature: feature, amount: amount, id: grant, kind: kind.rawValue,
      priority: priority, effective: effective.flatMap { Durations.instant($0, now: base) },
      expires: expires.flatMap { Durations.instant($0, now: base) }, every: every,
      rolloverMin: rolloverMin, rolloverMax: rolloverMax, sourceID: source.sourceId,
      sourceVersion: source.sourceVersion, change: options)
    try await Changing.run(.grantAdd, request, options, connection, output)
  }
}

struct GrantVoid: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "void", abstract: "Take back what is left of a grant.",
    discussion: "What is burnt stays burnt, what is held stays held; nothing becomes negative.")

  @Argument(help: "The account.") var account: Subject
  @Argument(help: "The grant's id.") var grant: Name
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: true)
    let request = GrantVoidRequest(
      account: account, id: grant, sourceID: source.sourceId,
      sourceVersion: source.sourceVersion, change: options)
    try await Changing.run(.grantVoid, request, options, connection, output)
  }
}

struct GrantList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Grants as they stand, in the order in which they are burnt.")

  @Argument(help: "The account.") var account: Subject
  @Option(help: "Only grants of this feature.") var feature: Name?
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (reply, body) = try await Changing.ask(
      .grantList, GrantListRequest(account: account, feature: feature), as: GrantListReply.self,
      over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
  }

  static func text(of reply: GrantListReply) -> String {
    var table = Table(
      .text("FEATURE"), .number("ORDER"), .text("GRANT"), .text("STATE"), .text("KIND"),
      .number("PRIORITY"), .number("AMOUNT"), .number("CARRIED"), .number("BURNT"),
      .number("HELD"), .number("LEFT"), .text("EVERY"), .text("FROM"), .text("UNTIL"),
      .text("REASON"))
    for row in reply.grants {
      table.add(
        row.feature.text, row.order.map { "\($0)" } ?? "-", row.id.text,
        row.state.rawValue + (row.ofPlan ? " (plan)" : ""), row.kind, "\(row.priority)",
        "\(row.amount)", "\(row.carried)", Output.number(row.burnt), Output.number(row.held),
        "\(row.left)", row.every?.word ?? "once",
        Output.time(row.period?.start ?? row.effective),
        row.voided.map { "void \(CivilDate.text($0))" }
          ?? Output.time(row.period?.end ?? row.expires), row.reason)
    }
    var lines = [
      "\(reply.account), plan \(reply.plan?.text ?? "none"), at \(CivilDate.text(reply.time))",
      reply.grants.isEmpty ? "no grants" : table.text,
    ]
    for owed in reply.owed {
      lines.append("\(owed.units) of \(owed.feature) owed: the next grant pays it first")
    }
    if !reply.loaded {
      lines.append("not loaded: rebuilt from the ledger at the next request; 0 may be more")
    }
    return lines.joined(separator: "\n")
  }
}
