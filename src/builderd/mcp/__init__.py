"""Server of the Model Context Protocol: tools with which agents deploy, look and mend. docs/mcp.md describes it."""
