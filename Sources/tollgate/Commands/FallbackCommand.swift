// fallback list | retry | drop: what an open policy of one sidecar let through, and Redis then
// refused for good.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct FallbackCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "fallback",
    abstract: "What an open failure policy let through and could not be posted.",
    discussion: """
      Each sidecar keeps its own: ask every one. What is retried or dropped is in that sidecar's \
      log, with who asked and why.
      """,
    subcommands: [FallbackList.self, FallbackRetry.self, FallbackDrop.self],
    defaultSubcommand: FallbackList.self)
}

struct FallbackList: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "The parked operations, the oldest first.",
    discussion: "Exit code 0: nothing is parked, 1: something is.")

  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (reply, body) = try await Changing.ask(
      .fallbackList, EmptyRequest(), as: FallbackListReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
    try (reply.parked.isEmpty ? ExitStatus.ok : .denied).leave()
  }

  static func text(of reply: FallbackListReply) -> String {
    let pending = "\(reply.pending) to post, \(reply.deferred) of them deferred"
    guard !reply.parked.isEmpty else { return "nothing is parked in \(reply.sidecar); \(pending)" }
    var table = Table(
      .text("OPERATION"), .text("SUBJECT"), .text("UNITS"), .text("PARKED"), .text("REASON"))
    for row in reply.parked {
      table.add(
        row.operation.hex, row.subject.path, row.units, CivilDate.text(row.time), row.reason)
    }
    return table.text + "\n\(reply.parked.count) parked in \(reply.sidecar); \(pending)"
  }
}

struct ParkedArguments: ParsableArguments {
  @Argument(help: ArgumentHelp("Operation id, 32 hex digits, from the list.", valueName: "id"))
  var operation: OperationID

  @Option(help: "Why; in the sidecar's log.")
  var reason: String = ""

  @Option(help: "Who asks; $USER where absent.")
  var actor: String?

  @Flag(help: "Say what would happen; change nothing.")
  var dryRun = false

  func run(
    _ method: AdminMethod, _ done: String, reasonRequired: Bool, _ connection: ConnectionOptions,
    _ output: OutputOptions
  ) async throws {
    if reasonRequired && reason.isEmpty {
      throw CommandFailure.usage("--reason is required", fix: "say why with --reason TEXT")
    }
    let options = ChangeOptions(
      actor: ChangeFlags.name(actor), reason: reason, dryRun: dryRun)
    let (reply, body) = try await Changing.send(
      method, FallbackRequest(operation: operation, change: options), id: nil,
      as: FallbackReply.self, over: connection)
    if output.json { return Output.json(body) }
    let parked = reply.parked
    let verb = reply.result == .dryRun ? "would be \(done)" : done
    Output.line("\(verb): \(parked.operation) \(parked.subject) \(parked.units)")
  }
}

struct FallbackRetry: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "retry", abstract: "Post a parked operation again, after its cause was mended.",
    discussion: """
      It is posted under its own id, so it counts once whatever was recorded before. Refused \
      again, it is parked again.
      """)

  @OptionGroup var parked: ParkedArguments
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await parked.run(
      .fallbackRetry, "posted again", reasonRequired: false, connection, output)
  }
}

struct FallbackDrop: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "drop", abstract: "Forget a parked operation; its units are never posted.")

  @OptionGroup var parked: ParkedArguments
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    try await parked.run(.fallbackDrop, "dropped", reasonRequired: true, connection, output)
  }
}
