// catalog validate | diff | apply | show | rollback. The file is read and checked here first, so
// that problems come with line numbers and need no sidecar.

import ArgumentParser
import TollgateCore
import TollgateServer
import TollgateWire

struct CatalogCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "catalog", abstract: "Features, plans and their limits.",
    subcommands: [
      CatalogValidate.self, CatalogDiffCommand.self, CatalogApply.self, CatalogShow.self,
      CatalogRollback.self,
    ])
}

enum CatalogFile {
  /// The document of a catalog file that is known to be sound.
  static func read(_ path: String) throws(CommandFailure) -> (Document, Catalog) {
    let text = try InputFile.text(path, bytesMax: YAMLDocument.bytesMax)
    let yaml: YAMLDocument
    do throws(InvalidDocument) {
      yaml = try YAMLDocument(yaml: text)
    } catch {
      throw failure(path, error.problems, nil)
    }
    switch CatalogReader.read(yaml.document) {
    case .success(let catalog): return (yaml.document, catalog)
    case .failure(let problems): throw failure(path, problems, yaml)
    }
  }

  private static func failure(
    _ path: String, _ problems: [Problem], _ yaml: YAMLDocument?
  ) -> CommandFailure {
    let noun = problems.count == 1 ? "problem" : "problems"
    return CommandFailure(
      AdminFailure(
        .invalidDocument, "\(path) has \(problems.count) \(noun); nothing was changed",
        problems: problems.map {
          AdminFailure.Problem(
            path: $0.path, line: yaml?.line(of: $0.path), value: $0.value, reason: $0.reason)
        }), file: path)
  }
}

struct CatalogValidate: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "validate", abstract: "Check a catalog file; needs no sidecar.",
    discussion: "Exit code 0: sound, 4: every problem is listed with its line.")

  @Argument(help: "Catalog file (YAML or JSON); - is standard input.") var file: String
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (_, catalog) = try CatalogFile.read(file)
    let reply = CatalogValidateReply(
      features: catalog.features.count, plans: catalog.plans.count,
      limits: catalog.limitUses.count)
    if output.json {
      Output.json(reply)
    } else {
      Output.line(
        "\(file) is sound: \(reply.features) features, \(reply.plans) plans, "
          + "\(reply.limits) limits")
    }
  }
}

struct CatalogDiffCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "diff", abstract: "What applying a catalog file would change, and for whom.",
    discussion: "Exit code 0: no difference, 1: it differs.")

  @Argument(help: "Catalog file.") var file: String
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (document, _) = try CatalogFile.read(file)
    let (reply, body) = try await Changing.ask(
      .catalogDiff, CatalogValidateRequest(document: document), as: CatalogDiffReply.self,
      over: connection)
    if output.json {
      Output.json(body)
    } else if reply.changes.isEmpty {
      Output.line("no difference from catalog version \(reply.catalogVersion)")
    } else {
      Output.line("against catalog version \(reply.catalogVersion):")
      for line in reply.changes { Output.line("  \(line)") }
      Output.line(Output.impact(reply.impact))
      if !reply.refusals.isEmpty {
        Output.line("\(reply.refusals.count) of these changes are refused; it cannot be applied")
      }
    }
    try (reply.changes.isEmpty ? ExitStatus.ok : .denied).leave()
  }
}

struct CatalogApply: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "apply", abstract: "Replace the catalog in force by a file.")

  @Argument(help: "Catalog file.") var file: String
  @Option(help: "Only where this catalog version is in force.") var expect: Int64?
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (document, _) = try CatalogFile.read(file)
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    try await CatalogChange.run(
      .catalogApply,
      CatalogApplyRequest(document: document, expectedVersion: expect, change: options), options,
      connection, output)
  }
}

struct CatalogRollback: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rollback",
    abstract: "Put an earlier catalog back in force, as a new version.")

  @Argument(help: "The catalog version to go back to.") var version: Int64
  @OptionGroup var flags: ChangeFlags
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let options = try flags.options(waitMilliseconds: connection.timeoutMilliseconds)
    try await CatalogChange.run(
      .catalogRollback, CatalogRollbackRequest(to: version, change: options), options, connection,
      output)
  }
}

enum CatalogChange {
  static func run(
    _ method: AdminMethod, _ request: some Encodable, _ options: ChangeOptions,
    _ connection: ConnectionOptions, _ output: OutputOptions
  ) async throws {
    let (reply, body) = try await Changing.send(
      method, request, id: options.operation, as: CatalogChangeReply.self, over: connection)
    if output.json {
      Output.json(body)
    } else {
      Output.change(reply.change)
      if reply.change.result != .dryRun {
        Output.line("catalog version \(reply.catalogVersion) is in force")
      }
    }
  }
}

struct CatalogShow: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show", abstract: "Print a catalog, as JSON that `apply` takes again.")

  @Option(help: "A catalog version; without it the one in force.") var version: Int64?
  @OptionGroup var connection: ConnectionOptions
  @OptionGroup var output: OutputOptions

  func run() async throws {
    let (reply, body) = try await Changing.ask(
      .catalogShow, CatalogShowRequest(version: version), as: CatalogShowReply.self,
      over: connection)
    if output.json {
      Output.json(body)
    } else {
      Output.error(
        "catalog version \(reply.catalogVersion)"
          + (reply.inForce ? ", in force (global version \(reply.globalVersion))" : ""))
      Output.line(reply.document.json(pretty: true))
    }
  }
}
