// What the commands of the data path share: their arguments, the one frame they send, and how the
// answer is told.

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

/// `tokens.output=1500`: where an amount that is left out would be a guess.
struct AmountArgument: ExpressibleByArgument {
  var item: Item

  init?(argument: String) {
    guard argument.contains("="), let named = ItemArgument(argument: argument) else { return nil }
    item = Item(feature: named.feature, amount: named.amount)
  }
}

/// `model=small`.
struct AttributeArgument: ExpressibleByArgument {
  var key: String
  var value: String

  init?(argument: String) {
    guard let equals = argument.firstIndex(of: "=") else { return nil }
    key = String(argument[..<equals])
    value = String(argument[argument.index(after: equals)...])
    guard (try? Name(key)) != nil, value.utf8.count <= WireLimits.attributeValueBytesMax else {
      return nil
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

  var asked: [Item] { items.map { Item(feature: $0.feature, amount: $0.amount) } }

  func validate() throws { try DataPath.checkItems(asked) }
}

struct AttributeOptions: ParsableArguments {
  @Option(
    name: .customLong("attribute"),
    help: ArgumentHelp(
      "What rates go by and the ledger keeps, e.g. model=small; may be repeated.",
      valueName: "key=value"))
  var list: [AttributeArgument] = []

  var pairs: [String: String] {
    Dictionary(list.map { ($0.key, $0.value) }, uniquingKeysWith: { $1 })
  }

  func validate() throws {
    guard Set(list.map(\.key)).count == list.count else {
      throw ValidationError("An attribute may be named once.")
    }
    guard list.count <= WireLimits.attributesMax else {
      throw ValidationError("At most \(WireLimits.attributesMax) attributes in one request.")
    }
  }
}

struct OperationOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Operation id, 32 hex digits.", valueName: "hex"))
  var id: OperationID?
}

/// One operation by hand.
struct DataPath {
  var id: OperationID
  /// The items that the record names, in its order.
  var asked: [Item] = []
  /// The other operation that the record names, and as what.
  var named: (key: String, id: OperationID)?

  static func newID() -> OperationID {
    var generator = SystemRandomNumberGenerator()
    return OperationID(time: .now, using: &generator)
  }

  static func checkItems(_ items: [Item]) throws {
    guard items.count <= Resolution.itemsMax else {
      throw ValidationError("At most \(Resolution.itemsMax) features in one request.")
    }
    guard Set(items.map(\.feature)).count == items.count else {
      throw ValidationError("A feature may be named once.")
    }
  }

  /// Asks, prints the answer and leaves with its exit code.
  func run(
    _ opcode: Opcode, _ record: some BatchRecord, _ connection: ConnectionOptions,
    _ output: OutputOptions
  ) async throws {
    do throws(WireError) { try record.validate() } catch { throw CommandFailure.usage(error.text) }
    let answer: DecisionRecord?
    do throws(CommandFailure) {
      answer = try await ask(opcode, record, connection)
    } catch {
      var failure = error
      if failure.status == .outcomeUnknown, opcode != .check {
        failure.failure.fix = "run it again with --id \(id): it is applied once"
      }
      throw failure
    }
    switch answer {
    case nil: throw CommandFailure(.internalError, "an answer without a record")
    case .error(let code, let message): throw refusal(code, message)
    case .decision(let decision):
      Output.line(output.json ? document(of: decision).json(pretty: true) : text(of: decision))
      try (decision.isAllowed ? ExitStatus.ok : .denied).leave()
    }
  }

  private func ask(
    _ opcode: Opcode, _ record: some BatchRecord, _ connection: ConnectionOptions
  ) async throws(CommandFailure) -> DecisionRecord? {
    let server = try await connection.open(.check)
    guard server.welcome.features.isSuperset(of: opcode.feature) else {
      await server.close()
      throw CommandFailure(
        .refused, "this sidecar does not serve \(opcode.name)",
        fix: "ask one of a newer release: reservations and refunds are a feature of the protocol")
    }
    let records = try await server.operate(opcode, RecordBatch([record]))
    await server.close()
    return records.first
  }

  private func refusal(_ code: ErrorCode, _ message: String) -> CommandFailure {
    var failure = CommandFailure(AdminFailure(code, message.isEmpty ? code.name : message))
    switch code {
    case .outcomeUnknown: failure.failure.fix = "run it again with --id \(id): it is applied once"
    case .reservationUnknown:
      failure.failure.fix =
        "check the subject and the id; where the hold was lost or is older than a day, tell what "
        + "was used with tollgate consume"
    case .reservationEnded:
      failure.failure.fix =
        "what was used of an expired one is told with tollgate settle; for more, reserve anew"
    case .overrunRejected:
      failure.failure.fix =
        "nothing was applied: settle what the hold covers under a new id, or reserve the rest first"
    case .nothingToRefund:
      failure.failure.fix =
        "check the subject and the id: it charged nothing, or all of it came back already"
    default: break
    }
    return failure
  }

  func document(of decision: Decision) -> Document {
    var head: [Document.Member] = [.init("operation", .string(id.hex))]
    if let named { head.append(.init(named.key, .string(named.id.hex))) }
    guard case .object(let members) = decision.document else { return decision.document }
    return .object(head + members)
  }

  func text(of decision: Decision) -> String {
    var lines = [Self.word(decision) + " (\(decision.reason.name))"]
    if let binding = decision.binding { lines[0] += " by limit \(binding)" }
    if decision.replayed { lines[0] += ", as answered before" }
    if decision.source != .redis { lines[0] += ", answered from \(decision.source.name)" }
    if let wait = decision.retryAfter {
      lines.append("can succeed in \(LimitText.span(wait))")
    }
    if let expires = decision.expires { lines.append("held until \(Output.time(expires))") }
    if !asked.isEmpty || !decision.settlements.isEmpty { lines.append(table(of: decision).text) }
    if !decision.burns.isEmpty { lines.append(burns(of: decision).text) }
    lines.append("id \(id)")
    return lines.joined(separator: "\n")
  }

  private static func word(_ decision: Decision) -> String {
    switch decision.reason {
    case .settled, .settledClamped, .settledLate: "settled"
    case .released: "released"
    case .extended: "extended"
    case .refunded: "refunded"
    default: decision.isAllowed ? "allowed" : "denied"
    }
  }

  /// One row for each item that was asked for, or settled.
  private func table(of decision: Decision) -> Table {
    let settles = !decision.settlements.isEmpty
    var table =
      settles
      ? Table(
        .text("FEATURE"), .number("ACTUAL"), .number("CHARGED"), .number("ABSORBED"),
        .text("LIMIT"), .number("SETTLED"), .number("HELD"), .number("REMAINING"), .text("RESET"))
      : Table(
        .text("FEATURE"), .number("ASKED"), .text("LIMIT"), .number("SETTLED"), .number("HELD"),
        .number("REMAINING"), .text("RESET"))
    let rows = settles ? decision.settlements.count : decision.items.count
    for index in 0..<rows {
      var row = [name(of: index, decision)]
      if settles {
        let settled = decision.settlements[index]
        row += ["\(settled.actual)", "\(settled.charged)", "\(settled.absorbed)"]
      } else {
        row.append(asked.indices.contains(index) ? "\(asked[index].amount)" : "-")
      }
      table.rows.append(row + Self.state(index, decision))
    }
    return table
  }

  private static func state(_ index: Int, _ decision: Decision) -> [String] {
    guard decision.items.indices.contains(index) else { return ["-", "-", "-", "-", "-"] }
    let state = decision.items[index]
    return [
      state.limit?.text ?? "-", "\(state.settled)", "\(state.held)",
      state.remaining.map { "\($0)" } ?? "unlimited", Output.time(state.reset),
    ]
  }

  private func burns(of decision: Decision) -> Table {
    var table = Table(.text("FEATURE"), .text("FROM GRANT"), .number("UNITS"))
    for burn in decision.burns {
      table.add(
        name(of: burn.item, decision), burn.grant?.text ?? "(beyond grants)", "\(burn.amount)")
    }
    return table
  }

  /// The items of a record that names none are those of the operation it names: not known here.
  private func name(of index: Int, _ decision: Decision) -> String {
    if asked.indices.contains(index) { return asked[index].feature.text }
    let first = asked.isEmpty ? decision.items.count - decision.derived.count : asked.count
    let derived = index - first
    return decision.derived.indices.contains(derived)
      ? decision.derived[derived].text : "item \(index + 1)"
  }
}
