// bypass FEATURE|--all --for 30m --reason TEXT, and bypass list | clear. For that time enforcement
// is shadow; metering goes on; it ends by itself.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct BypassCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bypass",
    abstract: "For a while, let everything through and keep metering; ends by itself.",
    usage: """
      tollgate bypass <feature>|--all --for <time> --reason <text>
      tollgate bypass list
      tollgate bypass clear <feature>|--all
      """,
    subcommands: [BypassSet.self, BypassList.self, BypassClear.self],
    defaultSubcommand: BypassSet.self)
}

struct BypassTarget: ParsableArguments {
  @Argument(help: "The feature.") var feature: Name?
  @Flag(help: "Every feature.") var all = false

  func validate() throws {
    guard (feature == nil) == all else { throw ValidationError("Name one feature, or --all.") }
  }
}

struct BypassSet: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Start a bypass, or give one another end.")

  @OptionGroup var target: BypassTarget
  @Option(name: .customLong("for"), help: ArgumentHelp("e.g. 30m, 2h.", valueName: "time"))
  var length: String
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    guard let time = Durations.milliseconds(length), time >= 1000,
      time <= BypassRequest.durationMillisecondsMax
    else { throw ValidationError("--for \(length): give 1s … 7d, e.g. 30m.") }
  }

  func run() async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: true)
    let request = BypassRequest(
      feature: target.feature, durationMilliseconds: Durations.milliseconds(length) ?? 0,
      change: options)
    try await Changing.run(.bypassSet, request, options, connection, output)
  }
}

struct BypassClear: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "clear", abstract: "End a bypass now; --all ends every one.")

  @OptionGroup var target: BypassTarget
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    let request = BypassClearRequest(
      feature: target.feature, everything: target.all ? true : nil, change: options)
    try await Changing.run(.bypassClear, request, options, connection, output)
  }
}

struct BypassList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Bypasses in force.")

  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (reply, body) = try await Changing.ask(
      .bypassList, EmptyRequest(), as: BypassListReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
  }

  static func text(of reply: BypassListReply) -> String {
    guard !reply.bypasses.isEmpty else { return "no bypass is in force" }
    var table = Table(
      .text("FEATURE"), .text("UNTIL"), .text("LEFT"), .text("BY"), .text("REASON"))
    for row in reply.bypasses {
      table.add(
        row.feature?.text ?? "every feature", CivilDate.text(row.until),
        LimitText.span(row.leftMilliseconds), row.actor, row.reason)
    }
    return table.text
  }
}
