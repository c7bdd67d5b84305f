// check and consume: the data path by hand, over the same frames that a backend sends.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

/// `chat.requests` or `tokens.output=1500`.
struct ItemArgument: ExpressibleByArgument {
  var feature: Name
  var amount: Int64

  init?(argument: String) {
    let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard let feature = try? Name(String(parts[0])) else { return nil }
    self.feature = feature
    amount = 1
    if parts.count == 2 {
      guard let amount = Int64(parts[1]), amount >= 0, amount <= Quantity.maximum else {
        return nil
      }
      self.amount = amount
    }
  }
}

struct RequestArguments: ParsableArguments {
  @Argument(help: ArgumentHelp("account[/member[/run…]]", valueName: "subject"))
  var subject: Subject

  @Argument(
    help: ArgumentHelp(
      "One or several features, each with the units asked: tokens.output=1500. Without =N: 1.",
      valueName: "feature[=n]"))
  var items: [ItemArgument]

  func validate() throws {
    guard items.count <= Resolution.itemsMax else {
      throw ValidationError("At most \(Resolution.itemsMax) features in one request.")
    }
    guard Set(items.map(\.feature)).count == items.count else {
      throw ValidationError("A feature may be named once.")
    }
  }
}

struct CheckCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Ask whether a subject may use a feature; consume nothing.",
    discussion: "Exit code 0: allowed, 1: denied.")

  @OptionGroup var request: RequestArguments
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    var generator = SystemRandomNumberGenerator()
    let id = OperationID(time: .now, using: &generator)
    try await DataPath.run(.check, id, request, connection, output)
  }
}

struct ConsumeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "consume",
    abstract: "Ask and consume, all features or none.",
    discussion: """
      Exit code 0: allowed, 1: denied. Repeated with the same --id, it consumes once and gets the \
      first answer again.
      """)

  @OptionGroup var request: RequestArguments
  @Option(help: ArgumentHelp("Operation id, 32 hex digits.", valueName: "hex"))
  var id: OperationID?
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    var generator = SystemRandomNumberGenerator()
    let id = id ?? OperationID(time: .now, using: &generator)
    do {
      try await DataPath.run(.consume, id, request, connection, output)
    } catch var failure as CommandFailure where failure.status == .outcomeUnknown {
      failure.failure.fix = "run it again with --id \(id): it is applied once"
      throw failure
    }
  }
}

enum DataPath {
  static func run(
    _ opcode: Opcode, _ id: OperationID, _ request: RequestArguments,
    _ connection: ConnectionOptions, _ output: OutputOptions
  ) async throws {
    let items = request.items.map { Item(feature: $0.feature, amount: $0.amount) }
    let server = try await connection.open(.check)
    let records = try await server.operate(
      opcode,
      OperationBatch([OperationRecord(id: id, subject: request.subject, items: items)]))
    await server.close()
    switch records.first {
    case nil: throw CommandFailure(.internalError, "an answer without a record")
    case .error(let code, let message):
      throw CommandFailure(AdminFailure(code, message.isEmpty ? code.name : message))
    case .decision(let decision):
      if output.json {
        var document = decision.document
        if case .object(let members) = document {
          document = .object([.init("operation", .string(id.hex))] + members)
        }
        Output.line(document.json(pretty: true))
      } else {
        Output.line(text(of: decision, items: items, id: id))
      }
      try (decision.isAllowed ? ExitStatus.ok : .denied).leave()
    }
  }

  static func text(of decision: Decision, items: [Item], id: OperationID) -> String {
    var lines = [(decision.isAllowed ? "allowed" : "denied") + " (\(decision.reason.name))"]
    if let binding = decision.binding { lines[0] += " by limit \(binding)" }
    if decision.replayed { lines[0] += ", as answered before" }
    if decision.source != .redis { lines[0] += ", answered from \(decision.source.name)" }
    if let wait = decision.retryAfter {
      lines.append("can succeed in \(LimitText.span(wait))")
    }
    var table = Table(
      .text("FEATURE"), .number("ASKED"), .text("LIMIT"), .number("SETTLED"), .number("HELD"),
      .number("REMAINING"), .text("RESET"))
    for (item, state) in zip(items, decision.items) {
      table.add(
        item.feature.text, "\(item.amount)", state.limit?.text ?? "-", "\(state.settled)",
        "\(state.held)", state.remaining.map { "\($0)" } ?? "unlimited", Output.time(state.reset))
    }
    lines.append(table.text)
    lines.append("id \(id)")
    return lines.joined(separator: "\n")
  }
}
