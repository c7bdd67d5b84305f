import ArgumentParser

@main
struct Tollgate: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tollgate", subcommands: [ServeCommand.self, LedgerCommand.self])
}
