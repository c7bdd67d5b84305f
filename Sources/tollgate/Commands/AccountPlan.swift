// account plan | freeze | unfreeze | past-due: what happens to an account as its contract goes on.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

/// The event of an outside system that a change is.
struct SourceOptions: ParsableArguments {
  @Option(help: "The outside system, e.g. stripe.") var sourceId: String?
  @Option(help: "The version of its event: an older one than applied changes nothing.")
  var sourceVersion: Int64?

  func validate() throws {
    guard (sourceId == nil) == (sourceVersion == nil) else {
      throw ValidationError("--source-id and --source-version go together.")
    }
  }
}

struct AccountPlan: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "plan", abstract: "Change an account's plan, now or later; begin a trial.",
    discussion: """
      Without --at the catalog's ranks decide: an upgrade is in force now, a downgrade at the end \
      of the billing period (the anchored month). Where a plan has no rank, say --at.

      Counters, grants and overrides survive; what the old plan itself granted goes with it. \
      Another change of plan withdraws what was to come, and so does --withdraw.
      """)

  @Argument(help: "The account.") var account: Subject
  @Argument(help: "A plan of the catalog.") var plan: Name?
  @Option(help: ArgumentHelp("now, period-end, 7d, or an instant.", valueName: "when"))
  var at: String?
  @Option(
    help: ArgumentHelp(
      "A trial: the plan from now until then, 14d or an instant.", valueName: "when"))
  var until: String?
  @Option(help: ArgumentHelp("What follows the trial: a plan, or none.", valueName: "plan"))
  var then: String?
  @Flag(help: "Take back what is to come.") var withdraw = false
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  static let moments = ["now", "period-end"]

  func validate() throws {
    if withdraw {
      guard plan == nil, at == nil, until == nil, then == nil else {
        throw ValidationError("--withdraw goes with no plan and no time.")
      }
      return
    }
    guard plan != nil else { throw ValidationError("Give a plan, or --withdraw.") }
    guard at == nil || until == nil else {
      throw ValidationError("A trial begins now: --until goes without --at.")
    }
    guard (until == nil) == (then == nil) else {
      throw ValidationError("--until and --then go together: --then PLAN, or --then none.")
    }
    if let then, then != "none", (try? Name(then)) == nil {
      throw ValidationError("--then \(then): give a plan, or none.")
    }
    for (option, text) in [("--at", at), ("--until", until)] {
      guard let text, option == "--until" || !Self.moments.contains(text) else { continue }
      guard Durations.instant(text, now: .now) != nil else {
        throw ValidationError(
          "\(option) \(text): give e.g. 14d or 2026-12-01T00:00:00Z"
            + (option == "--at" ? ", now, or period-end." : "."))
      }
    }
  }

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    // Counted from the id's time, so that a repetition with the same id asks for the same instant.
    let base = options.operation?.time ?? .now
    let isWord = at.map { Self.moments.contains($0) } ?? false
    let request = AccountPlanRequest(
      account: account, plan: plan, when: isWord ? at : nil,
      effective: isWord ? nil : at.flatMap { Durations.instant($0, now: base) },
      until: until.flatMap { Durations.instant($0, now: base) },
      then: then.flatMap { $0 == "none" ? nil : try? Name($0) },
      thenNone: then == "none" ? true : nil, withdraw: withdraw ? true : nil,
      sourceID: source.sourceId, sourceVersion: source.sourceVersion, change: options)
    try await Changing.run(.accountPlan, request, options, connection, output)
  }
}

struct AccountFreeze: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "freeze", abstract: "Deny an account everything, at once.",
    discussion: "Counters, grants and open holds stay; what is held can still be settled.")

  @Argument(help: "The account.") var account: Subject
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await Self.set(true, account, source, flags, connection, output)
  }

  static func set(
    _ frozen: Bool, _ account: Subject, _ source: SourceOptions, _ flags: ChangeFlags,
    _ connection: ConnectionOptions, _ output: OutputOptions
  ) async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: frozen)
    let request = AccountSetRequest(
      account: account, plan: nil, frozen: frozen, sourceID: source.sourceId,
      sourceVersion: source.sourceVersion, change: options)
    try await Changing.run(.accountSet, request, options, connection, output)
  }
}

struct AccountUnfreeze: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "unfreeze", abstract: "Let a frozen account go on where it stood.")

  @Argument(help: "The account.") var account: Subject
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await AccountFreeze.set(false, account, source, flags, connection, output)
  }
}

struct AccountPastDue: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "past-due", abstract: "Note that a payment is owed, or that it came.",
    discussion: """
      Within the grace everything works; from its end on everything is denied PAST_DUE, by time. \
      The grace counts from the first such note: another one with the same --grace changes \
      nothing, one with another moves the end.
      """)

  @Argument(help: "The account.") var account: Subject
  @Option(
    help: ArgumentHelp(
      "How long everything still works, e.g. 3d; 0s: not at all.", valueName: "time"))
  var grace: String?
  @Flag(help: "The payment came.") var clear = false
  @OptionGroup var source: SourceOptions
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard (grace != nil) != clear else { throw ValidationError("Give --grace TIME, or --clear.") }
    if let grace, Durations.milliseconds(grace) == nil {
      throw ValidationError("--grace \(grace): give a time, e.g. 3d.")
    }
  }

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    let request = AccountPastDueRequest(
      account: account, graceMilliseconds: grace.flatMap { Durations.milliseconds($0) },
      clear: clear ? true : nil, sourceID: source.sourceId, sourceVersion: source.sourceVersion,
      change: options)
    try await Changing.run(.accountPastDue, request, options, connection, output)
  }
}
