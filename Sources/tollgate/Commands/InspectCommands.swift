// usage, reset, explain.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct UsageCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "usage",
    abstract: "What a subject has used, per feature and window; with --history, over time.")

  @Argument(help: "account[/member…]") var subject: Subject
  @OptionGroup var history: HistoryOptions
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    if history.history {
      return try await UsageHistory.run(subject, history, over: connection, output)
    }
    let (reply, body) = try await Changing.ask(
      .usage, UsageRequest(subject: subject), as: UsageReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
  }

  static func text(of reply: UsageReply) -> String {
    var table = Table(
      .text("FEATURE"), .text("LIMIT"), .text("OF"), .text("WINDOW"), .number("SETTLED"),
      .number("HELD"), .number("AMOUNT"), .number("REMAINING"), .text("RESET"), .text("UNIT"))
    for row in reply.usage {
      let forgiven = row.forgiven > 0 ? " (−\(row.forgiven) forgiven)" : ""
      table.add(
        row.feature.text, row.limit?.text ?? "(billed)", row.owner.path, row.window,
        "\(row.settled)\(forgiven)", "\(row.held)", Output.number(row.amount),
        Output.number(row.remaining), Output.time(row.reset), row.unit)
    }
    var lines = [
      "\(reply.subject), plan \(reply.plan?.text ?? "none"), at \(CivilDate.text(reply.time))",
      table.text,
    ]
    if !reply.loaded {
      lines.append("not loaded: rebuilt from the ledger at the next request; 0 may be more")
    }
    if reply.bucketState != .ready { lines.append("bucket is \(reply.bucketState.rawValue)") }
    return lines.joined(separator: "\n")
  }
}

struct ResetCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reset",
    abstract: "Let a limit start from zero in this period; the bill stays as it is.")

  @Argument(help: "account[/member…]") var subject: Subject
  @Argument(help: "The limit's id.") var limit: Name
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let options = try flags.options(
      waitMilliseconds: connection.timeoutMilliseconds, reasonRequired: true)
    let (reply, body) = try await Changing.send(
      .reset, ResetRequest(subject: subject, limit: limit, change: options),
      id: options.operation, as: ResetReply.self, over: connection)
    if output.json { return Output.json(body) }
    Output.change(reply.change)
    if reply.forgiven > 0 { Output.line("\(reply.forgiven) units of \(reply.feature) forgiven") }
  }
}

struct ExplainCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "explain",
    abstract: "Why a subject would be allowed or denied now; consumes nothing.",
    discussion: "Exit code 0: it would be allowed, 1: denied.")

  @OptionGroup var request: RequestArguments
  @Option(
    name: .customLong("with"),
    help: ArgumentHelp("An attribute that prices go by; repeatable.", valueName: "key=value"))
  var attributes: [String] = []
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func validate() throws {
    for text in attributes where text.hasPrefix("=") || !text.contains("=") {
      throw ValidationError("--with \(text): give KEY=VALUE, e.g. model=small.")
    }
  }

  func run() async throws {
    let pairs = attributes.map { text in
      let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      return (String(parts[0]), String(parts[1]))
    }
    let question = ExplainRequest(
      subject: request.subject,
      items: request.items.map { .init(feature: $0.feature, amount: $0.amount) },
      attributes: pairs.isEmpty ? nil : Dictionary(pairs) { _, last in last })
    let (reply, body) = try await Changing.ask(
      .explain, question, as: ExplainReply.self, over: connection)
    if output.json { Output.json(body) } else { Output.line(Self.text(of: reply)) }
    try (reply.allowed ? ExitStatus.ok : .denied).leave()
  }

  static func text(of reply: ExplainReply) -> String {
    var lines = ["\(reply.subject): \(reply.summary) (\(reply.reason))", ""]
    lines.append("plan      \(reply.plan?.text ?? "none") (\(reply.planSource))")
    if let next = reply.next { lines.append("next      \(next.text)") }
    if reply.frozen { lines.append("frozen    yes") }
    if let owed = reply.pastDue { lines.append("past due  \(owed.text)") }
    lines.append(
      "versions  catalog \(reply.catalogVersion), global \(reply.globalVersion), "
        + "account \(reply.accountVersion)")
    lines.append(
      "bucket    \(reply.bucket), \(reply.bucketState.rawValue), epoch \(reply.epoch)"
        + (reply.loaded ? "" : ", account not loaded"))
    lines.append("at        \(CivilDate.text(reply.time))")
    for bypass in reply.bypasses {
      lines.append(
        "bypass    \(bypass.feature?.text ?? "every feature") until \(CivilDate.text(bypass.until))"
          + " by \(bypass.actor): \(bypass.reason)")
    }
    lines.append("")
    for price in reply.prices {
      lines.append(
        "price     \(price.rate): \(price.units) \(price.of == "all" ? "" : "uncovered ")"
          + "\(price.feature) at \(price.price) per \(price.per)"
          + " (after \(price.unitsBefore) this month)"
          + " → \(price.charge) of \(price.into)"
          + (price.from.milliseconds > 0 ? ", version of \(CivilDate.text(price.from))" : ""))
    }
    if !reply.prices.isEmpty { lines.append("") }
    var table = Table(
      .text(""), .number("#"), .text("FEATURE"), .text("LIMIT"), .text("OF"), .text("RULE"),
      .text("ENFORCEMENT"), .text("VERDICT"), .text("WHY"))
    for step in reply.steps {
      table.add(
        step.binding ? "→" : "", "\(step.order)", step.feature.text, step.limit.text,
        step.owner.path, step.kind, step.enforcement, step.verdict, step.why)
    }
    lines.append(reply.steps.isEmpty ? "no limit applies" : table.text)
    for step in reply.steps { lines += burns(step) }
    for step in reply.steps where !step.overrides.isEmpty {
      for override in step.overrides {
        let until = override.expires.map { " until \(CivilDate.text($0))" } ?? ""
        lines.append(
          "  \(step.limit): \(override.text) for \(override.subject)\(until), "
            + "by \(override.author): \(override.reason)")
      }
    }
    for lease in reply.leases ?? [] {
      lines.append("  lease of \(LeaseCommand.holder(lease)): \(lease.text)")
    }
    for note in reply.notes { lines.append("note: \(note)") }
    return lines.joined(separator: "\n")
  }

  /// What a credit burns from, in that order, and what comes after the last grant.
  private static func burns(_ step: ExplainReply.Step) -> [String] {
    guard let grants = step.grants else { return [] }
    var lines: [String] = []
    for (index, grant) in grants.enumerated() {
      var text = "  \(step.limit) \(index + 1). \(grant.grant): \(grant.amount)"
      if grant.carried > 0 { text += " + \(grant.carried) carried" }
      text += ", \(grant.burnt) burnt, \(grant.held) held, \(grant.left) left"
      if grant.voided { text += ", void" }
      if let ends = grant.ends { text += ", until \(CivilDate.text(ends))" }
      lines.append(text + "; burns \(grant.burns)")
    }
    if let owed = step.owed, owed > 0 {
      lines.append("  \(step.limit): \(owed) owed from before, paid first")
    }
    if let overage = step.overage, overage > 0 {
      lines.append("  \(step.limit): \(overage) beyond every grant")
    }
    return lines
  }
}
