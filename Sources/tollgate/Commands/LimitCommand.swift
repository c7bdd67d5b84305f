// limit set | unset | list: overrides of one subject.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct LimitCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "limit", abstract: "Change one limit for one subject, and look at what holds.",
    subcommands: [LimitSet.self, LimitUnset.self, LimitList.self])
}

struct LimitSet: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Override a limit; counters are never reset by it.",
    discussion: """
      A limit lowered below what is used leaves 0. The override holds for the subject and all \
      below it, until --expires or `limit unset`.
      """)

  @Argument(help: "account[/member…]") var subject: Subject
  @Argument(help: "The limit's id in the catalog.") var limit: Name
  @Option(help: "Units: the amount of a limit, or what a credit gives in each period.") var amount:
    Int64?
  @Flag(help: "No limit; still counted.") var unlimited = false
  @Option(help: ArgumentHelp("For a gate: true or false.", valueName: "bool")) var enabled: Bool?
  @Option(help: "hard, soft or shadow.") var enforcement: Enforcement?
  @Option(help: ArgumentHelp("7d, 12h, or an instant in RFC 3339.", valueName: "when"))
  var expires: String?
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard amount != nil || unlimited || enabled != nil || enforcement != nil else {
      throw ValidationError("Give at least one of --amount, --unlimited, --enabled, --enforcement.")
    }
    guard amount == nil || !unlimited else {
      throw ValidationError("--amount and --unlimited exclude each other.")
    }
    if let amount, amount < 0 || amount > Quantity.maximum {
      throw ValidationError("--amount must be from 0 to \(Quantity.maximum).")
    }
    if let expires, Durations.instant(expires, now: .now) == nil {
      throw ValidationError("--expires \(expires): give e.g. 7d, 12h or 2026-12-01T00:00:00Z.")
    }
  }

  func run() async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: true)
    // Counted from the id's time, so that a repetition with the same id asks for the same instant.
    let base = options.operation?.time ?? .now
    let request = LimitSetRequest(
      subject: subject, limit: limit, amount: amount, unlimited: unlimited ? true : nil,
      enabled: enabled, enforcement: enforcement?.rawValue,
      expires: expires.flatMap { Durations.instant($0, now: base) }, sourceID: source.sourceId,
      sourceVersion: source.sourceVersion, change: options)
    try await Changing.run(.limitSet, request, options, connection, output)
  }
}

struct LimitUnset: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "unset", abstract: "Take every override of a limit for a subject back.")

  @Argument(help: "account[/member…]") var subject: Subject
  @Argument(help: "The limit's id in the catalog.") var limit: Name
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    try await Changing.run(
      .limitUnset,
      LimitUnsetRequest(
        subject: subject, limit: limit, sourceID: source.sourceId,
        sourceVersion: source.sourceVersion, change: options), options, connection, output)
  }
}

struct LimitList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Every limit of a subject: in its plan, and in force now.")

  @Argument(help: "account[/member…]") var subject: Subject
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (reply, body) = try await Changing.ask(
      .limitList, LimitListRequest(subject: subject), as: LimitListReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
  }

  static func text(of reply: LimitListReply) -> String {
    var table = Table(
      .text("FEATURE"), .text("LIMIT"), .text("IN PLAN"), .text("IN FORCE"), .number("LEVEL"),
      .text("ENFORCEMENT"), .text("ON FAILURE"), .text("OVERRIDDEN"))
    for row in reply.limits {
      table.add(
        row.feature.text, row.limit.text, row.inPlan, row.inForce, "\(row.level)", row.enforcement,
        row.failurePolicy, row.overridden ? "yes" : "")
    }
    var lines = ["\(reply.subject), plan \(reply.plan?.text ?? "none")", table.text]
    if !reply.overrides.isEmpty { lines.append(overrides(reply.overrides)) }
    return lines.joined(separator: "\n")
  }

  static func overrides(_ overrides: [OverrideReport]) -> String {
    var table = Table(
      .text("OVERRIDE OF"), .text("FOR"), .text("CHANGE"), .text("UNTIL"), .text("BY"),
      .text("REASON"))
    for row in overrides {
      table.add(
        row.limit.text, row.subject.path, row.text,
        row.expires.map { CivilDate.text($0) } ?? "unset", row.author, row.reason)
    }
    return table.text
  }
}
